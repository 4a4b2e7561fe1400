"""The settings of SAC, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.actor_critic_config import Discount
from rollcall.learners.algorithms.control.off_policy.rates_config import ModelRate, TargetRate
from rollcall.learners.declared import Declared, Needs


class SACConfig(BaseModel):
    """learner.learning_rate is the actor's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["sac"] = Field(default="sac", description="the algorithm")
    discount: Discount = 0.99
    target_rate: TargetRate = 0.005
    critic_learning_rate: ModelRate = None
    temperature_learning_rate: ModelRate = None
    temperature: float = Field(default=1.0, gt=0, description="what a nat of entropy is worth in reward, at first")
    learn_temperature: bool = Field(
        default=True, description="so that the policy keeps target_entropy; false: it stays"
    )
    target_entropy: float | None = Field(
        default=None,
        description="nats that the policy is to keep. None: less one for each number of a continuous action (between "
        "-1 and 1); of choices, 0.98 of a uniform policy's",
    )


DECLARED = Declared(
    SACConfig,
    Needs(networks=("critic", "temperature"), target_networks=("critic",), replay=True, corrects_policy_lag=True),
    unit="fragment",
)
