"""Evaluation: whole episodes from fixed seeds under frozen weights, each with the env's own rewards. The same weights
and seed give the same result, however many envs are stepped at once. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.actors.envs import EnvConfig, make_env
from rollcall.actors.local_group import LocalGroup
from rollcall.actors.policy import Policy, PolicyFactory
from rollcall.cluster.messages import Weights
from rollcall.cluster.seeds import derive_seed

# A rollout is begun for so many steps at a time: policies prepare their arrays for as many as they are told.
_CHUNK_STEPS = 256


class EvalConfig(BaseModel):
    """How a policy is judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    episodes: int = Field(
        default=20, ge=0, le=100_000, description="episodes of one evaluation; 0: nothing is evaluated"
    )
    every_steps: int | None = Field(
        default=None, ge=1, description="learner steps between evaluations during the run; default: only at the end"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="episode i begins the same way in every evaluation")
    greedy: bool = Field(default=True, description="the most likely action; false: sampled as in training")
    num_envs: int = Field(default=20, ge=1, le=4096, description="episodes that run side by side")
    max_steps_per_episode: int = Field(default=30_000, ge=1, description="an episode is cut after so many steps")


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Undiscounted returns of whole episodes, in the order of their seeds. `std` is the population's."""

    mean: float
    std: float
    n: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    policy_version: int
    unit: str = "return"  # what `mean` is of


class Evaluator:
    """Runs episodes with weights that it is given. Builds its envs once."""

    def __init__(self, env_config: EnvConfig, config: EvalConfig, policy_factory: PolicyFactory) -> None:
        # A lost life ends nothing here, and a fall does: what counts is the game.
        self._env_config = env_config.model_copy(update={"episodic_life": False, "fixed_episode_steps": None})
        self._config = config
        self._policy = policy_factory()
        self._groups: dict[int, LocalGroup] = {}

    def evaluate(self, weights: Weights, episodes: int | None = None, seed: int | None = None) -> EvalResult:
        """Runs episodes 0 .. `episodes` - 1; episode i always begins from the seed derived from `seed` and i.

        Raises:
          EnvFailure, NonFinite: from the env; an evaluation with holes would be no result.
          ValueError: for no episodes.
        """
        episodes = self._config.episodes if episodes is None else episodes
        if episodes < 1:
            raise ValueError(f"episodes={episodes}: an evaluation needs at least one")
        seed = self._config.seed if seed is None else seed
        self._policy.load(weights)
        # A sampled action depends on the noise of its place in the batch: one episode at a time leaves no choice of it.
        side_by_side = min(self._config.num_envs, episodes) if self._config.greedy else 1
        returns: list[float] = []
        lengths: list[int] = []
        for first in range(0, episodes, side_by_side):
            wave = range(first, min(first + side_by_side, episodes))
            group = self._group(len(wave))
            limit = self._config.max_steps_per_episode
            for total, length in _run_wave(group, self._policy, wave, seed, greedy=self._config.greedy, limit=limit):
                returns.append(total)
                lengths.append(length)
        return EvalResult(
            mean=float(np.mean(returns)),
            std=float(np.std(returns)),
            n=episodes,
            returns=tuple(returns),
            lengths=tuple(lengths),
            policy_version=weights.version,
        )

    def close(self) -> None:
        for group in self._groups.values():
            group.close()
        self._groups.clear()

    def _group(self, num_envs: int) -> LocalGroup:
        if num_envs not in self._groups:
            self._groups[num_envs] = LocalGroup(
                partial(make_env, self._env_config), num_envs, seed=0, name=self._env_config.id
            )
        return self._groups[num_envs]


def _run_wave(
    group: LocalGroup, policy: Policy, wave: Sequence[int], seed: int, *, greedy: bool, limit: int
) -> list[tuple[float, int]]:
    """(return, length) of the wave's episodes, one per env of the group."""
    shown = group.reset([derive_seed(seed, "eval", i) >> 32 for i in wave])
    observations, action_mask = shown.observations, shown.action_mask
    active, starts = np.ones(len(wave), bool), np.ones(len(wave), bool)
    returns, lengths = np.zeros(len(wave), np.float64), np.zeros(len(wave), np.int64)
    state = policy.initial_recurrent_state(len(wave))
    for first in range(0, limit, _CHUNK_STEPS):
        num_steps = min(_CHUNK_STEPS, limit - first)
        noise = derive_seed(seed, "eval-noise", wave[0], first)
        rollout = policy.rollout(
            num_steps=num_steps, num_envs=len(wave), seed=noise, recurrent_state=state, greedy=greedy
        )
        for _ in range(num_steps):
            _, actions = rollout.act(observations, episode_starts=starts, action_mask=action_mask)
            step = group.step(actions, active)
            observations, action_mask = step.observations, step.action_mask
            starts = np.zeros(len(wave), bool)
            returns += step.rewards
            lengths += step.mask
            active = active & ~(step.terminated | step.truncated)
            if not active.any():
                return list(zip(returns.tolist(), lengths.tolist(), strict=True))
        state = rollout.recurrent_state()
    return list(zip(returns.tolist(), lengths.tolist(), strict=True))
