"""Real CartPole experience for the learner's tests, produced by the real policy; and a learner to give it to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.steps import EnvSteps, Unroll
from rollcall.cluster.messages.weights import Weights
from rollcall.learners.algorithm import Context, Models
from rollcall.learners.collators.control import ControlCollator
from rollcall.learners.collective import Collective
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.networks import build_actor_critic
from rollcall.learners.models.normaliser import RewardNormaliser
from rollcall.learners.models.policy import TorchPolicy
from rollcall.learners.models.policy_config import PolicyConfig

SPACES = (gym.spaces.Box(-5, 5, (4,), np.float32), gym.spaces.Discrete(2))


def context_of(models: Models, seed: int = 0) -> Context:
    """Of the only learner process."""
    return Context(models, torch.Generator().manual_seed(seed), Collective())


def make_learner(
    algorithm: Any,
    *,
    policy: PolicyConfig | None = None,
    config: LearnerConfig | None = None,
    collective: Collective | None = None,
    log: Path | None = None,
    kind_of_collator: type[ControlCollator] = ControlCollator,
) -> Learner:
    policy = policy or PolicyConfig()
    network = build_actor_critic(*SPACES, policy, with_critic=algorithm.needs.critic, seed=3)
    models: dict[str, nn.Module] = {"actor_critic": network}
    normaliser = RewardNormaliser(0.99, policy.reward_clip) if policy.normalise_rewards else None
    if normaliser is not None:
        models["reward_normaliser"] = normaliser
    return Learner(
        models=models,
        algorithm=algorithm,
        config=config or LearnerConfig(learning_rate=1e-3),
        policy_id="policy",
        run_seed=0,
        collator=kind_of_collator(network, normaliser),
        consumption_log=log,
        collective=collective,
    )


def cartpole(
    weights: Weights,
    *,
    ticket: int = 0,
    num_steps: int = 64,
    num_envs: int = 4,
    policy: PolicyConfig | None = None,
) -> GymTrajectory:
    """One fragment from freshly reset envs (NEXT_STEP autoreset: the dead steps are masked)."""
    envs: Any = gym.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")
    acting = TorchPolicy(*SPACES, policy or PolicyConfig(), weights=weights)
    state = acting.initial_recurrent_state(num_envs)
    rollout = acting.rollout(num_steps=num_steps, num_envs=num_envs, seed=ticket, recurrent_state=state)
    observation, _ = envs.reset(seed=ticket)
    starts = np.ones(num_envs, bool)
    dead = np.zeros(num_envs, bool)
    rows: list[tuple[Any, ...]] = []
    finals: list[tuple[int, int, Any]] = []
    for t in range(num_steps):
        stored, actions = rollout.act({"observation": observation}, episode_starts=starts)
        following, reward, terminated, truncated, _ = envs.step(actions)
        rows.append((observation, stored.copy(), reward, terminated, truncated, ~dead, starts))
        ended = terminated | truncated
        finals += [(t, b, following[b]) for b in np.nonzero(ended)[0]]
        starts, dead, observation = dead, ended, following
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    observations, actions, rewards, terminated, truncated, mask, starts = columns
    return GymTrajectory(
        header=Header(ticket_id=ticket, attempt=1, epoch=1, policy_id="policy", actor_id="test"),
        shard=0,
        incarnation=0,
        policy_version=weights.version,
        unroll=Unroll(
            steps=EnvSteps(
                observations={"observation": observations},
                actions=actions,
                behaviour_logprobs=rollout.behaviour_logprobs(),
                rewards=rewards.astype(np.float32),
                terminated=terminated,
                truncated=truncated,
                mask=mask,
                episode_starts=starts,
            ),
            last_observations={"observation": observation},
            final_index=np.array([(t, b) for t, b, _ in finals], np.int64).reshape(-1, 2),
            final_observations={"observation": np.array([o for _, _, o in finals], np.float32).reshape(-1, 4)},
            initial_recurrent_state=state,
        ),
    )
