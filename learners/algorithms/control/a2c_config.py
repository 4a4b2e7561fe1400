"""The settings of A2C, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.actor_critic_config import (
    Discount,
    EntropyCoef,
    NormaliseAdvantages,
    ValueCoef,
)
from rollcall.learners.declared import Declared, Needs


class A2CConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["a2c"] = Field(default="a2c", description="the algorithm")
    discount: Discount = 0.99
    gae_lambda: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="1: the return to the fragment's end (A3C's); lower: less variance, more bias",
    )
    n_step: int | None = Field(
        default=None, ge=1, description="steps of reward before the critic's value, in place of gae_lambda's mixture"
    )
    value_coef: ValueCoef = 0.5
    entropy_coef: EntropyCoef = 0.01
    normalise_advantages: NormaliseAdvantages = False


DECLARED = Declared(A2CConfig, Needs(critic=True), unit="fragment")
