"""The settings of TD3, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.actor_critic_config import Discount
from rollcall.learners.algorithms.control.off_policy.rates_config import ModelRate, TargetRate
from rollcall.learners.declared import Declared, Needs


class TD3Config(BaseModel):
    """learner.learning_rate is the actor's; the noise that explores is the policy's (policy.exploration_noise)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["td3"] = Field(default="td3", description="the algorithm")
    discount: Discount = 0.99
    target_rate: TargetRate = 0.005
    critic_learning_rate: ModelRate = None
    target_noise: float = Field(
        default=0.2, ge=0, description="deviation of the noise that smooths targets, in half widths of the bounds"
    )
    target_noise_clip: float = Field(default=0.5, ge=0, description="what that noise is cut to")
    policy_delay: int = Field(
        default=2, ge=1, description="the actor and all targets move every so many gradient steps"
    )


DECLARED = Declared(
    TD3Config,
    Needs(
        networks=("critic", "step_count"),
        target_networks=("actor_critic", "critic"),
        replay=True,
        corrects_policy_lag=True,
    ),
    unit="fragment",
)
