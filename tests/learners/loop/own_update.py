"""Algorithms with more than the usual: an update of their own, values of samples, a target network, arrays to keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Metrics
from rollcall.learners.algorithms.control import samples
from rollcall.learners.algorithms.control.samples import StepMinibatch, StepRows
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.collators.collator import CollatorState
from rollcall.learners.collators.control import ControlCollator
from rollcall.learners.declared import Needs
from rollcall.learners.maths import losses
from rollcall.learners.update import Stepper, follow


@dataclass(frozen=True)
class Targets:
    index: Tensor  # int64: which sample of the batch a row is
    logprobs: Tensor  # before the update


Minibatch = StepMinibatch[Targets]


class NaturalGradient:
    """A step along the natural gradient of the surrogate, shortened until the KL is small and the surrogate better."""

    name = "natural_gradient"
    unit: Unit = "fragment"
    needs = Needs(target_networks=("actor_critic",))

    def __init__(self, *, max_kl: float = 0.01) -> None:
        self.max_kl = max_kl
        self.kl = 0.0

    def prepare(self, context: Context, batch: GymBatch) -> StepRows[Targets]:
        network = samples.actor_critic(context.models)
        index = torch.arange(batch.steps.mask.numel()).view(batch.shape)
        params = network(batch.steps.observations)[0]
        return samples.batch_rows(
            network, batch, Targets(index, network.distribution.log_prob(params, batch.steps.actions))
        )

    def minibatches(self, context: Context, prepared: StepRows[Targets]) -> Iterator[Minibatch]:
        yield from samples.shuffled_grid(prepared, 1, context.generator).minibatches()

    def loss(self, context: Context, minibatch: Minibatch) -> Loss:
        """The reward is the step's own: enough for a toy. Values of samples: the size of their terms."""
        rows = minibatch.rows
        now = samples.evaluate(samples.actor_critic(context.models), rows)
        gain = (now.logprobs - rows.targets.logprobs).exp() * rows.steps.rewards * rows.mask
        size = int(minibatch.rows.targets.index.max()) + 1 if context.collective.num_processes == 1 else SAMPLES
        per_sample = torch.zeros(size).index_add(0, rows.targets.index, gain.detach().abs())
        loss = -gain.sum() / minibatch.num_valid
        return Loss(loss, {"policy_loss": loss.detach()}, per_sample)

    def update(self, context: Context, prepared: StepRows[Targets], stepper: Stepper) -> Metrics:
        (minibatch,) = self.minibatches(context, prepared)
        before, old = stepper.loss_and_gradient(minibatch), stepper.parameters
        gradient = stepper.gradient.clone()
        direction = self._solved(stepper, minibatch, gradient)
        curvature = direction @ self._fisher_times(stepper, minibatch, direction)
        step = direction * (2.0 * self.max_kl / curvature).sqrt()
        for shorter in range(10):
            stepper.write(old - 0.5**shorter * step)
            after, kl = stepper.loss(minibatch), stepper.loss(minibatch, self._kl)
            if after.loss < before.loss and kl.loss <= self.max_kl:
                break
        return {"loss": after.loss, "kl": kl.loss, "shortened": torch.tensor(float(shorter))}

    def after_step(self, context: Context) -> None:
        follow(context.models["target_actor_critic"], context.models["actor_critic"], rate=0.5)

    def _kl(self, context: Context, minibatch: Minibatch) -> Loss:
        rows = minibatch.rows
        now = samples.evaluate(samples.actor_critic(context.models), rows)
        over = {"mask": rows.mask, "num_valid": minibatch.num_valid}
        return Loss(losses.masked_mean(losses.k3(now.logprobs - rows.targets.logprobs), **over), {})

    def _fisher_times(self, stepper: Stepper, minibatch: Minibatch, vector: Tensor) -> Tensor:
        """The gradient of (gradient of the KL . vector), and some damping."""
        places = [(parameter, place) for parameter, place in stepper.views(vector)]

        def directional(context: Context, part: Minibatch) -> Loss:
            parameters = [parameter for parameter, _ in places]
            found = torch.autograd.grad(
                self._kl(context, part).loss, parameters, create_graph=True, materialize_grads=True
            )
            return Loss(torch.stack([(g * v).sum() for g, (_, v) in zip(found, places, strict=True)]).sum(), {})

        stepper.loss_and_gradient(minibatch, directional)
        return stepper.gradient + 0.1 * vector

    def _solved(self, stepper: Stepper, minibatch: Minibatch, gradient: Tensor) -> Tensor:
        """x with Fisher x = gradient, by conjugate gradients."""
        times = partial(self._fisher_times, stepper, minibatch)
        x, residual, direction = torch.zeros_like(gradient), gradient.clone(), gradient.clone()
        for _ in range(10):
            product = times(direction)
            alpha = (residual @ residual) / (direction @ product)
            x, following = x + alpha * direction, residual - alpha * product
            direction = following + (following @ following) / (residual @ residual) * direction
            residual = following
        return x


SAMPLES = 2 * 64 * 4  # of learner_process.py's batch


class PushedGradients(NaturalGradient):
    """An optimiser step along gradients that come from elsewhere beside its own."""

    name = "pushed_gradients"
    needs = Needs(target_networks=("actor_critic",))

    def __init__(self, pushed: float) -> None:
        super().__init__()
        self.pushed = pushed

    def update(self, context: Context, prepared: StepRows[Targets], stepper: Stepper) -> Metrics:
        (minibatch,) = self.minibatches(context, prepared)
        found = stepper.loss_and_gradient(minibatch)
        stepper.add_gradient(torch.full_like(stepper.gradient, self.pushed))
        return {"loss": found.loss, "grad_norm": stepper.step()}


class Remembering(ControlCollator):
    """Keeps what it is told of samples, as a replay buffer keeps priorities: a large array in the checkpoint."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.priorities = np.zeros(0, np.float32)

    def learned(self, batch: GymBatch, per_sample: Tensor | None) -> None:
        super().learned(batch, per_sample)
        assert per_sample is not None
        self.priorities = per_sample.numpy()

    def state(self) -> CollatorState:
        return CollatorState({**super().state().values, "size": len(self.priorities)}, {"priorities": self.priorities})

    def load_state(self, state: CollatorState) -> None:
        super().load_state(state)
        self.priorities = state.arrays["priorities"]
        assert len(self.priorities) == state.values["size"]
