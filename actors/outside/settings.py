"""The settings of actors outside Ray: which env shards are theirs, and what the gateway takes from them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class OutsideConfig(BaseModel):
    """Env shards for actors that are no processes of the run, and the gateway where these get their work."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_shards: int = Field(ge=1, le=65536, description="env shards that outside actors step: the last of num_shards")
    listen: str = Field(
        default="127.0.0.1:0",
        pattern=r"^[^\s:]+:\d{1,5}$",
        description="host:port of the gateway; 0 is a free port; loopback unless you say otherwise",
    )
    token_file: str | None = Field(
        default=None, description="holds the bearer token; by default the run makes outside.token in its directory"
    )
    max_actors: int = Field(default=64, ge=1, le=4096, description="outside actors at a time; others are told to wait")
    max_body_mib: float = Field(default=64.0, gt=0.0, le=4096.0, description="largest trajectory that is taken, in MiB")
    lease_s: float = Field(
        default=30.0,
        ge=0.2,
        le=3600.0,
        description="seconds without a word after which an outside actor counts as gone",
    )
