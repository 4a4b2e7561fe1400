"""When a run is saved, and how much of that is kept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class CheckpointConfig(BaseModel):
    """When checkpoints are written and how many are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every_steps: int | None = Field(
        default=None, ge=1, description="learner steps between checkpoints; default: ten over the run"
    )
    keep: int = Field(default=3, ge=1, description="how many of the newest are kept")
