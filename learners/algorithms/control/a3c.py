"""A3C (Mnih et al., 2016, arXiv:1602.01783): actors act a fragment and compute the gradient of A2C's loss over it; the
learner steps along the gradients as they come, with one optimiser for all, whose averages they share."""

from __future__ import annotations

from collections.abc import Iterator

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Metrics
from rollcall.learners.algorithms.control.a2c import A2C
from rollcall.learners.algorithms.control.a2c_config import A2CConfig
from rollcall.learners.algorithms.control.a3c_config import DECLARED, A3CConfig
from rollcall.learners.algorithms.control.samples import ActorCriticMinibatch
from rollcall.learners.batches.gradient_batch import GradientBatch
from rollcall.learners.update import Stepper


class A3C:
    """A gradient is of the policy that acted, whatever the parameters are that it is applied to: how many steps it may
    come late is max_policy_lag."""

    Config = A3CConfig
    name = "a3c"
    unit: Unit = "fragment"
    needs = DECLARED.needs

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
