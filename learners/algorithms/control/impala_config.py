"""The settings of IMPALA, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.actor_critic_config import (
    Discount,
    EntropyCoef,
    NormaliseAdvantages,
    NumMinibatches,
    ValueCoef,
)
from rollcall.learners.declared import Declared, Needs


class IMPALAConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["impala"] = Field(default="impala", description="the algorithm")
    discount: Discount = 0.99
    vtrace_lambda: float = Field(default=1.0, ge=0, le=1, description="lower: less variance, more of the critic's bias")
    rho_bar: float = Field(
        default=1.0, gt=0, description="bound of the ratio in the value target: which policy's value is learnt"
    )
    c_bar: float = Field(
        default=1.0, gt=0, description="bound of the ratio in the trace: how far credit travels, not where it converges"
    )
    pg_rho_bar: float | None = Field(
        default=None, gt=0, description="bound of the ratio in the policy gradient (None: rho_bar, as in the paper)"
    )
    epochs: int = Field(
        default=1, ge=1, description="passes over a batch; in all but the first step of it the targets are not renewed"
    )
    num_minibatches: NumMinibatches = 1
    value_coef: ValueCoef = 0.5
    entropy_coef: EntropyCoef = 0.01
    normalise_advantages: NormaliseAdvantages = False


DECLARED = Declared(IMPALAConfig, Needs(critic=True, corrects_policy_lag=True), unit="fragment")
