"""The settings of kept experience, as a recipe has them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PriorityConfig(BaseModel):
    """Which transitions are drawn more often than others (Schaul et al., 2016, arXiv:1511.05952)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exponent: float = Field(
        default=0.6, ge=0, le=1, description="a transition is drawn in proportion to |TD error|^exponent; 0: uniformly"
    )
    importance: float = Field(
        default=0.4, ge=0, le=1, description="how far weights make up for it, at first; 1 at the end of the run"
    )
    initial: Literal["largest", "actor"] = Field(
        default="largest",
        description="a new transition's priority: the largest so far, or by the TD error that its actor finds (Ape-X)",
    )
    least: float = Field(default=1e-6, gt=0, description="added to every |TD error|: none is forgotten for ever")


class ReplayConfig(BaseModel):
    """What is kept, and how much is learnt from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    capacity: int = Field(
        default=1_000_000, ge=2, description="env steps kept, of all envs together; each episode's end takes one more"
    )
    batch_size: int = Field(default=256, ge=1, description="transitions of one gradient step")
    updates_per_env_step: float = Field(
        default=1.0, gt=0, le=64, description="gradient steps for each env step, exactly; below 1: one for several"
    )
    learning_starts: int = Field(default=1000, ge=0, description="env steps before the first gradient step")
    n_step: int = Field(default=1, ge=1, le=128, description="rewards added up before the target network is asked")
    prioritised: PriorityConfig | None = Field(
        default=None, description="draw by TD error (a section, {} for its defaults); none: uniformly"
    )
    storage: Literal["memory", "disk"] = Field(
        default="memory", description="disk: mapped from files in the run directory, for what memory has no room for"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.capacity < self.batch_size:
            raise ValueError(
                f"capacity={self.capacity} holds no batch of batch_size={self.batch_size}: raise it, or lower the other"
            )
        if self.learning_starts >= self.capacity:
            raise ValueError(
                f"learning_starts={self.learning_starts} is more than capacity={self.capacity} keeps: lower it"
            )
        return self
