"""The settings of REINFORCE, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.actor_critic_config import Discount, EntropyCoef, NormaliseAdvantages
from rollcall.learners.declared import Declared, Needs


class REINFORCEConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["reinforce"] = Field(default="reinforce", description="the algorithm")
    discount: Discount = 0.99
    reward_to_go: bool = Field(
        default=True, description="an action is credited with what follows it only; false: with its whole episode"
    )
    baseline: Literal["none", "moving_average", "value"] = Field(
        default="moving_average", description="subtracted from returns: less variance, no bias; value: a critic's"
    )
    baseline_decay: float = Field(
        default=0.9, ge=0, lt=1, description="beta of the moving average: b <- beta * b + (1 - beta) * mean return"
    )
    value_coef: float = Field(default=0.5, ge=0, description="weight of the value loss, with baseline=value")
    entropy_coef: EntropyCoef = 0.0
    normalise_advantages: NormaliseAdvantages = False


DECLARED = Declared(REINFORCEConfig, Needs(), unit="episode")
