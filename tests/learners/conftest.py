"""Random experience for tests of algorithms, with the actions' behaviour log-probabilities those of a given policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch

from rollcall.cluster.messages.steps import EnvSteps
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.models.networks import ActorCritic, build_actor_critic
from rollcall.learners.models.policy_config import PolicyConfig

OBSERVATION_SPACE = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)

MakePolicy = Callable[..., ActorCritic]
MakeBatch = Callable[..., GymBatch]


def _make_policy(
    *,
    recurrent: Literal["none", "lstm", "gru"] = "none",
    with_critic: bool = True,
    continuous: bool = False,
    shared_torso: bool | None = None,
    squash: Literal["clip", "tanh"] = "clip",
    seed: int = 1,
) -> ActorCritic:
    """A small network whose policy is far from uniform."""
    action_space: gym.Space[Any] = gym.spaces.Box(-1.0, 1.0, (2,), np.float32) if continuous else gym.spaces.Discrete(4)
    config = PolicyConfig(
        recurrent=recurrent,
        recurrent_size=5,
        hidden_sizes=(8,),
        orthogonal_init=False,
        shared_torso=shared_torso,
        squash=squash,
    )
    network = build_actor_critic(OBSERVATION_SPACE, action_space, config, with_critic=with_critic, seed=seed)
    with torch.no_grad():
        network.policy_head.weight.mul_(4.0)
    return network


def _make_batch(
    policy: ActorCritic,
    *,
    num_steps: int = 6,
    num_envs: int = 4,
    seed: int = 0,
    lag: float = 0.0,
    dead_rate: float = 0.15,
    end_rate: float = 0.2,
    forbid: bool = False,
) -> GymBatch:
    """Experience whose behaviour policy is `policy`, or with lag > 0 one that differs by normal noise of that scale in
    the log-probabilities. With forbid, some actions are masked; dead steps forbid all."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_steps, num_envs)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator)

    def chance(rate: float, *sizes: int) -> torch.Tensor:
        return torch.rand(*sizes, generator=generator) < rate

    mask = ~chance(dead_rate, *shape)
    terminated = chance(end_rate / 2, *shape) & mask
    truncated = chance(end_rate / 2, *shape) & mask & ~terminated
    ends = terminated | truncated
    starts = torch.zeros_like(mask)
    starts[1:] = ends[:-1]
    observations = {"observation": normal(*shape, 3)}
    state = normal(policy.num_states, num_envs, policy.recurrent_size) if policy.is_recurrent else None
    distribution = policy.distribution
    action_mask = None
    if forbid:
        action_mask = chance(0.6, *shape, 4)
        action_mask[..., 0] = True
        action_mask &= mask.unsqueeze(-1)
    with torch.no_grad():
        params = policy(observations, initial_state=state, episode_starts=starts).params
        actions = distribution.sample(params, distribution.noise(shape, generator), action_mask)
        logprobs = distribution.log_prob(params, actions, action_mask)
    final_index = ends.nonzero()
    return GymBatch(
        steps=EnvSteps(
            observations=observations,
            actions=actions,
            behaviour_logprobs=logprobs + lag * normal(*shape),
            rewards=normal(*shape),
            terminated=terminated,
            truncated=truncated,
            mask=mask,
            episode_starts=starts,
            action_mask=action_mask,
        ),
        last_observations={"observation": normal(num_envs, 3)},
        final_index=final_index,
        final_observations={"observation": normal(len(final_index), 3)},
        initial_recurrent_state=state,
    )


@pytest.fixture
def make_policy() -> MakePolicy:
    return _make_policy


@pytest.fixture
def make_batch() -> MakeBatch:
    return _make_batch
