"""The settings of DAgger, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.imitation.expert_loss_config import EntropyCoef, LossName
from rollcall.learners.declared import Declared, Needs


class DAggerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["dagger"] = Field(default="dagger", description="the algorithm")
    expert: str = Field(
        min_length=1,
        description="who is imitated: a run (its directory, its name under runs/, or one of its checkpoints), or "
        "my_module:function, of one observation, which returns an action",
    )
    beta_decay: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="in learner step i the expert acts at a step with the chance beta_decay^i, and the learner "
        "otherwise; 0: the expert acts in the first one alone",
    )
    acts: Literal["greedy", "sampled"] = Field(
        default="greedy", description="what the learner does where it acts: its likeliest action, or one drawn"
    )
    loss: LossName = "nll"
    entropy_coef: EntropyCoef = 0.0

    def beta(self, version: int) -> float:
        """The chance that the expert acts, while this version of the learner does otherwise."""
        return float(self.beta_decay**version)


DECLARED = Declared(DAggerConfig, Needs(replay=True, expert=True, corrects_policy_lag=True), unit="fragment")
