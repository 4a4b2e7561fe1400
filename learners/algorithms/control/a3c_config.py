"""The settings of A3C, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.actor_critic_config import Discount, EntropyCoef, ValueCoef
from rollcall.learners.declared import Declared, Needs


class A3CConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["a3c"] = Field(default="a3c", description="the algorithm")
    discount: Discount = 0.99
    gae_lambda: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="1: the return to the fragment's end, as in the paper; lower: less variance, more bias",
    )
    value_coef: ValueCoef = 0.5
    entropy_coef: EntropyCoef = 0.01
    gradients_per_step: int = Field(
        default=1,
        ge=1,
        le=65536,
        description="gradients that one step is made along; 1: each has its own, as in the paper",
    )


DECLARED = Declared(A3CConfig, Needs(critic=True, gradients=True, corrects_policy_lag=True), unit="fragment")
