"""Random transitions, and a learner process's half of an algorithm that learns from them, for tests of such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rollcall.learners.algorithm import Context, Metrics, StepsApart, with_own_models
from rollcall.learners.batches.replay_batch import ReplayBatch, Transitions
from rollcall.learners.collective import Collective
from rollcall.learners.loop.optimizer_config import AdamConfig, OptimizerConfig
from rollcall.learners.loop.parameters import ReplicatedParameters
from rollcall.learners.models.networks import build_actor_critic
from rollcall.learners.models.policy_config import PolicyConfig
from rollcall.learners.update import Stepper

VECTOR = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
CONTINUOUS = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
DISCRETE = gym.spaces.Discrete(4)
SQUASHED = PolicyConfig(squash="tanh", state_dependent_std=True, hidden_sizes=(8,), orthogonal_init=False)
DETERMINISTIC = PolicyConfig(exploration_noise=0.1, hidden_sizes=(8,), orthogonal_init=False)


def transitions(
    num: int = 12, *, actions: gym.Space[Any] = CONTINUOUS, masked: bool = False, seed: int = 0
) -> Transitions:
    """Some of them terminated, none weighted as another."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    discrete = isinstance(actions, gym.spaces.Discrete)
    width = int(actions.n) if isinstance(actions, gym.spaces.Discrete) else 0
    masks = [torch.rand(num, width, generator=generator) < 0.6 for _ in range(2)] if masked else [None, None]
    for mask in masks:
        if mask is not None:
            mask[:, 0] = True
    taken = torch.zeros(num, dtype=torch.int64) if masked else torch.arange(num) % max(1, width)
    return Transitions(
        observations={"observation": normal(num, 3)},
        actions=taken if discrete else normal(num, 2).clamp(-1.0, 1.0),
        rewards=normal(num),
        discounts=torch.where(torch.rand(num, generator=generator) < 0.3, 0.0, 0.9),
        next_observations={"observation": normal(num, 3)},
        weights=torch.rand(num, generator=generator) + 0.5,
        action_mask=masks[0],
        next_action_mask=masks[1],
    )


class Trained:
    """An algorithm, its models and what steps them."""

    def __init__(
        self,
        algorithm: Any,
        policy: PolicyConfig,
        *,
        observations: gym.Space[Any] = VECTOR,
        actions: gym.Space[Any] = CONTINUOUS,
        learning_rate: float = 1e-3,
        optimizer: OptimizerConfig | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        self.algorithm = algorithm
        network = build_actor_critic(observations, actions, policy, with_critic=algorithm.needs.critic, seed=1)
        self.models: Mapping[str, nn.Module] = with_own_models(algorithm, {"actor_critic": network}, seed=2)
        apart = None
        if isinstance(algorithm, StepsApart):
            apart = {name: rate or learning_rate for name, rate in algorithm.learning_rates().items()}
        self.trained = ReplicatedParameters(
            self.models,
            collective=Collective(),
            optimizer=optimizer or AdamConfig(),
            learning_rate=learning_rate,
            apart=apart,
        )
        self.context = Context(self.models, torch.Generator().manual_seed(0), Collective(), (observations, actions))
        self.stepper = Stepper(algorithm, self.context, self.trained, max_grad_norm=max_grad_norm)

    def learn(self, *drawn: Transitions) -> Metrics:
        """One learner step of a gradient step for each."""
        self.stepper.begin()
        batch = ReplayBatch(drawn=drawn, added=None)  # type: ignore[arg-type]  # nothing here looks at it
        found: Metrics = self.algorithm.update(self.context, self.algorithm.prepare(self.context, batch), self.stepper)
        return found

    def parts(self, rows: Transitions, num_processes: int = 1) -> list[Any]:
        """What each process would compute the loss of, of the same minibatch."""
        self.context = replace(self.context, generator=torch.Generator().manual_seed(0))
        (minibatch,) = self.algorithm.minibatches(self.context, ReplayBatch(drawn=(rows,), added=None))  # type: ignore[arg-type]
        return [part for rank in range(num_processes) for part in minibatch.shards(rank, num_processes)]

    def values(self, name: str) -> dict[str, Tensor]:
        return {key: tensor.detach().clone() for key, tensor in self.models[name].state_dict().items()}


def critics_apart(critic: Any, inputs: Tensor) -> list[Tensor]:
    """Each of the two evaluated alone, row by row, with tanh as the policies here have it: what a batched pass is to
    say. Each is [B, n]."""
    found = []
    for i in range(2):
        rows = []
        for row in inputs:
            x = row
            for layer, (weight, bias) in enumerate(zip(critic.weights, critic.biases, strict=True)):
                x = x @ weight[i] + bias[i, 0]
                x = torch.tanh(x) if layer < len(critic.weights) - 1 else x
            rows.append(x)
        found.append(torch.stack(rows))
    return found
