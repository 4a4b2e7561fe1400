"""Settings that all direct methods have."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DirectMethodConfig(BaseModel):
    """Settings of every direct method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: int = Field(default=16384, ge=1, description="padded tokens of one forward pass: changes no result")

    @property
    def reward_scale(self) -> float:
        """What makes a reward of a log-ratio."""
        raise NotImplementedError
