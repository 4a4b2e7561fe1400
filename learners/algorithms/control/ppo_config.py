"""The settings of PPO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.actor_critic_config import Discount, EntropyCoef, NumMinibatches, ValueCoef
from rollcall.learners.declared import Declared, Needs


class KLPenalty(BaseModel):
    """J - coef * KL(before || after) in place of the clip."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    coef: float = Field(
        default=1.0, gt=0, description="weight of the KL, in units of normalised advantages; with a target, the first"
    )
    target: float | None = Field(
        default=None,
        gt=0,
        description="the KL of a batch's update, in nats: below two thirds of it coef is halved, above three halves "
        "doubled, for the next batch; None: coef stays",
    )
    clip: bool = Field(default=False, description="clip the ratio as well")


class PPOSettings(BaseModel):
    """The details that PPO is known to hang on, each with its reason. Learning rate, its annealing and the gradient
    clip are the learner's; normalisation of observations and rewards is the policy's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    discount: Discount = 0.99
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="lower: less variance, more of the critic's bias")
    epochs: int = Field(default=4, ge=1, description="passes over a batch: more is learnt from it, and drifts further")
    num_minibatches: NumMinibatches = 4
    clip_range: float = Field(
        default=0.2, gt=0, lt=1, description="how far a ratio may leave 1 before its gradient ends: bounds the update"
    )
    clip_range_high: float | None = Field(
        default=None,
        gt=0,
        description="the upper bound apart (None: clip_range): a higher one keeps rare actions alive",
    )
    value_loss: Literal["mse", "clipped", "huber"] = Field(
        default="mse", description="clipped: the critic may not leap either; huber: outliers among returns weigh less"
    )
    value_clip_range: float = Field(
        default=0.2, gt=0, description="for value_loss=clipped, in units of returns: it supposes normalised rewards"
    )
    value_huber_delta: float = Field(
        default=1.0, gt=0, description="for value_loss=huber, in units of returns: the error beyond which it is linear"
    )
    value_coef: ValueCoef = 0.5
    entropy_coef: EntropyCoef = 0.0
    normalise_advantages: Literal["minibatch", "batch", "none"] = Field(
        default="minibatch",
        description="to mean 0, deviation 1 over these steps: frees the step from the reward's scale",
    )
    target_kl: float | None = Field(
        default=None, gt=0, description="an epoch whose approx_kl exceeds it is the batch's last: a leash on the epochs"
    )
    kl_penalty: KLPenalty | None = Field(
        default=None, description="a penalty on the KL to the policy before the update, in place of the clip"
    )


class PPOConfig(PPOSettings):
    name: Literal["ppo"] = Field(default="ppo", description="the algorithm")


DECLARED = Declared(PPOConfig, Needs(critic=True, corrects_policy_lag=True), unit="fragment")
