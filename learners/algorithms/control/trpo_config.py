"""The settings of TRPO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.algorithms.control.actor_critic_config import Discount, NormaliseAdvantages
from rollcall.learners.declared import Declared, Needs


class TRPOConfig(BaseModel):
    """The learner's optimiser, learning rate and gradient clip are the critic's alone: the policy's step is as long as
    `max_kl` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["trpo"] = Field(default="trpo", description="the algorithm")
    discount: Discount = 0.99
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="lower: less variance, more of the critic's bias")
    max_kl: float = Field(
        default=0.01, gt=0, description="delta: how far a step may take the policy, as mean KL(before || after) in nats"
    )
    cg_iterations: int = Field(
        default=10, ge=1, description="of conjugate gradients, each a Fisher-vector product over the batch"
    )
    cg_damping: float = Field(
        default=0.1, ge=0, description="added to the Fisher matrix's diagonal: where it is flat, steps stay short"
    )
    line_search_steps: int = Field(
        default=10, ge=1, description="lengths that are tried before the policy stays as it is"
    )
    line_search_shrink: float = Field(default=0.8, gt=0, lt=1, description="of the step, from one try to the next")
    critic_epochs: int = Field(default=10, ge=1, description="passes over a batch in which the critic is fitted")
    critic_minibatches: int = Field(default=16, ge=1, description="the critic's gradient steps per pass")
    normalise_advantages: NormaliseAdvantages = True


DECLARED = Declared(TRPOConfig, Needs(critic=True, corrects_policy_lag=True), unit="fragment")
