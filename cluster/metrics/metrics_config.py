"""How Prometheus is to find a run, as a recipe has it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_PORT = 9464


class MetricsConfig(BaseModel):
    """Where Prometheus finds the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(default=True, description="serve /metrics from the driver")
    host: str = Field(default="127.0.0.1", description="the address served on; loopback unless you say otherwise")
    port: int | None = Field(
        default=None, ge=1, le=65535, description=f"an error if taken; by default {DEFAULT_PORT} or a free one"
    )
