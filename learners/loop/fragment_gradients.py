"""The learner's half of a step that is done in an actor's process: the gradient of an algorithm's loss over one unit of
experience. By the same parameters side by side, stepper and loss as a learner's; but nothing is ever stepped here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from rollcall.cluster.errors import NonFinite
from rollcall.cluster.messages.experience import GymGradient, GymTrajectory
from rollcall.cluster.messages.weights import Weights
from rollcall.learners.algorithm import Algorithm, Context, with_own_models
from rollcall.learners.batches.gym_batch import stack_trajectories
from rollcall.learners.collective import Collective
from rollcall.learners.loop.optimizer_config import SGDConfig
from rollcall.learners.loop.parameters import ReplicatedParameters
from rollcall.learners.models.flat import load_module_weights
from rollcall.learners.update import Stepper


class FragmentGradients:
    """Satisfies actors.policy.Gradients."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        algorithm: Algorithm[Any, Any, Any],
        *,
        spaces: tuple[gym.Space[Any], gym.Space[Any]] | None = None,
    ) -> None:
        """`models`: built as the learner's are, whose weights are loaded before anything is computed. `algorithm`: one
        that learns from a batch by one minibatch, which it does not shuffle."""
        self._models = with_own_models(algorithm, models)
        self._algorithm = algorithm
        self._context = Context(self._models, torch.Generator(), Collective(), spaces)
        trained = ReplicatedParameters(self._models, collective=Collective(), optimizer=SGDConfig(), learning_rate=0.0)
        self._stepper = Stepper(algorithm, self._context, trained)

    def load(self, weights: Weights) -> None:
        for name, model in self._models.items():
            load_module_weights(model, weights, name=name)

    def of(self, trajectory: GymTrajectory) -> GymGradient:
        """See Gradients.of."""
        began = time.perf_counter()
        batch = stack_trajectories([trajectory])
        with torch.no_grad():
            prepared = self._algorithm.prepare(self._context, batch)
        (minibatch,) = self._algorithm.minibatches(self._context, prepared)
        found = self._stepper.loss_and_gradient(minibatch)
        gradient = self._stepper.gradient.numpy().copy()
        if not np.isfinite(gradient).all():  # nor is it where the loss is not
            raise NonFinite(f"the gradient of its loss is not finite (loss {float(found.loss):g}); look at the rewards")
        metrics = {name: float(value) for name, value in {**found.metrics, **self._context.noted}.items()}
        self._context.noted.clear()
        return GymGradient(
            header=trajectory.header,
            shard=trajectory.shard,
            incarnation=trajectory.incarnation,
            policy_version=trajectory.policy_version,
            gradient=gradient,
            num_steps=trajectory.num_steps,
            metrics={**metrics, "loss": float(found.loss), "gradient_s": time.perf_counter() - began},
        )
