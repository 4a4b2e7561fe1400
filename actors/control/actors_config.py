"""Who acts in an env, and in what portions, as a recipe has it."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

from rollcall.actors.outside.settings import OutsideConfig
from rollcall.cluster.cores import usable_cores


def _number_of_actors(value: object, is_number: ValidatorFunctionWrapHandler, known: ValidationInfo) -> int:
    """One for each core beside the learner's, and each with a shard."""
    if value != "auto":
        return cast(int, is_number(value))
    outside: OutsideConfig | None = known.data.get("outside")
    shards: int = known.data.get("num_shards", 1) - (0 if outside is None else outside.num_shards)
    return max(min(1, shards), min(shards, usable_cores() - 1), 0)


class ActorsConfig(BaseModel):
    """Who acts, and in what portions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_envs: int = Field(default=16, ge=1, le=65536, description="environments over all actors")
    num_shards: int = Field(
        default=1, ge=1, le=65536, description="groups of envs stepped together; the result depends on it, not on num"
    )
    outside: OutsideConfig | None = Field(
        default=None, description="env shards for actors outside Ray, which come over HTTP; none: there are no such"
    )
    num: Annotated[
        int,
        WrapValidator(_number_of_actors, json_schema_input_type=Annotated[int, Field(ge=0, le=4096)] | Literal["auto"]),
    ] = Field(
        default="auto",
        validate_default=True,
        ge=0,
        le=4096,
        description="actor processes; at most one per env shard; auto: as many as this machine has cores beside the "
        "learner's; 0: outside actors alone",
    )
    unroll_length: int = Field(
        default=128, ge=1, le=1_000_000, description="env steps of a fragment; the most steps of an episode"
    )
    max_env_restarts: int = Field(
        default=10, ge=0, description="how many raising envs of a shard are started anew before the shard fails"
    )
    ticket_deadline_s: float = Field(
        default=120.0, gt=0.0, description="seconds within which a ticket must be produced"
    )
    on_stale: Literal["wait", "drop"] = Field(
        default="wait", description="before the lag bound is passed: wait for stragglers, or drop what is too old"
    )
    torch_threads: int = Field(default=1, ge=1, le=256, description="threads of one actor's inference")

    @property
    def first_outside_shard(self) -> int:
        """From this one on shards are outside actors'."""
        return self.num_shards - (0 if self.outside is None else self.outside.num_shards)
