"""The settings of IQL, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.actor_critic_config import Discount
from rollcall.learners.algorithms.control.off_policy.rates_config import TargetRate
from rollcall.learners.declared import Declared, Needs


class IQLConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["iql"] = Field(default="iql", description="the algorithm")
    discount: Discount = 0.99
    expectile: float = Field(
        default=0.7,
        gt=0,
        lt=1,
        description="of the set's actions, how good a one V is of: 0.5: their mean; near 1: the best",
    )
    inverse_temperature: float = Field(
        default=3.0, ge=0, description="how much more a better action is imitated: exp(this * advantage); 0: cloning"
    )
    largest_weight: float = Field(default=100.0, gt=0, description="at which that is cut")
    target_rate: TargetRate = 0.005
    reward_scale: float = Field(default=1.0, gt=0, description="rewards are multiplied by this, and so are advantages")


DECLARED = Declared(IQLConfig, Needs(critic=True, networks=("critic",), target_networks=("critic",)))
