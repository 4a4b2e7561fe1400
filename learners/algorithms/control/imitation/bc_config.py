"""The settings of behavioural cloning, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.imitation.expert_loss_config import EntropyCoef, LossName
from rollcall.learners.declared import Declared, Needs


class BCConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["bc"] = Field(default="bc", description="the algorithm")
    loss: LossName = "nll"
    entropy_coef: EntropyCoef = 0.0


DECLARED = Declared(BCConfig, Needs())
