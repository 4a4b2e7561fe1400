"""A3C (Mnih et al., 2016, arXiv:1602.01783): actors act a fragment and compute the gradient of A2C's loss over it; the
learner steps along the gradients as they come, with one optimiser for all, whose averages they share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Metrics, Needs
from rollcall.learners.algorithms.control.a2c import A2C, A2CConfig
from rollcall.learners.algorithms.control.actor_critic import Discount, EntropyCoef, ValueCoef
from rollcall.learners.algorithms.control.samples import ActorCriticMinibatch
from rollcall.learners.batches.gradient_batch import GradientBatch
from rollcall.learners.update import Stepper


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


class A3C:
    """A gradient is of the policy that acted, whatever the parameters are that it is applied to: how many steps it may
    come late is max_policy_lag."""

    Config = A3CConfig
    name = "a3c"
    unit: Unit = "fragment"
    needs = Needs(critic=True, gradients=True, corrects_policy_lag=True)

    def __init__(self, config: A3CConfig) -> None:
        shared = config.model_dump(exclude={"name", "gradients_per_step"})
        self.of_actors = A2C(A2CConfig(**shared))

    def prepare(self, context: Context, batch: GradientBatch) -> GradientBatch:
        return batch

    def update(self, context: Context, prepared: GradientBatch, stepper: Stepper) -> Metrics:
        norm = stepper.apply_gradient(prepared.gradient())
        return {**prepared.means(), "grad_norm": norm}

    def minibatches(self, context: Context, prepared: GradientBatch) -> Iterator[ActorCriticMinibatch]:
        """The learner has none: it is given gradients."""
        yield from ()

    def loss(self, context: Context, minibatch: ActorCriticMinibatch) -> Loss:
        return self.of_actors.loss(context, minibatch)


ALGORITHM = A3C
