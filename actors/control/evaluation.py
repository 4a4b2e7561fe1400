"""Evaluation: whole episodes from fixed seeds under frozen weights, each with the env's own rewards. An episode's
return follows from the weights and its own seed, to the last bit: neither the number of episodes nor how many run side
by side changes it. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from rollcall.actors.control.evaluation_config import ROWS, EvalConfig
from rollcall.actors.control.recording import EpisodeRecorder
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env
from rollcall.actors.envs.local_group import LocalGroup
from rollcall.actors.envs.vector import Reset, Step
from rollcall.actors.policy import Policy, PolicyFactory
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.reports import EvalReport
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed

# A rollout is begun for so many steps at a time: policies prepare their arrays for as many as they are told.
_CHUNK_STEPS = 256


class Evaluator:
    """Runs episodes with weights that it is given. Builds its envs once."""

    def __init__(self, env_config: EnvConfig, config: EvalConfig, policy_factory: PolicyFactory) -> None:
        self._env_config = as_judged(env_config)
        self._config = config
        self._policy = policy_factory()
        self._groups: dict[int, LocalGroup] = {}

    def evaluate(
        self,
        weights: Weights,
        episodes: int | None = None,
        seed: int | None = None,
        recorder: EpisodeRecorder | None = None,
    ) -> EvalReport:
        """Runs episodes 0 .. `episodes` - 1; episode i always begins from the seed derived from `seed` and i.
        `recorder`: takes them down.

        Raises:
          EnvFailure, NonFinite: from the env; an evaluation with holes would be no result.
          ValueError: for no episodes.
        """
        episodes = self._config.episodes if episodes is None else episodes
        if episodes < 1:
            raise ValueError(f"episodes={episodes}: an evaluation needs at least one")
        seed = self._config.seed if seed is None else seed
        self._policy.load(weights)
        returns: list[float] = []
        lengths: list[int] = []
        unfinished = 0
        for numbers in _waves(episodes, self._config):
            wave = Wave(self._group(len(numbers)), self._policy, numbers, seed, self._config.greedy, recorder)
            totals, steps = np.zeros(len(numbers), np.float64), np.zeros(len(numbers), np.int64)
            for step in wave.steps(self._config.max_steps_per_episode):
                totals += step.rewards
                steps += step.mask
            returns += totals.tolist()
            lengths += steps.tolist()
            unfinished += int(wave.active.sum())
        return EvalReport(
            unit="return",
            mean=float(np.mean(returns)),
            std=float(np.std(returns)),
            n=episodes,
            returns=tuple(returns),
            lengths=tuple(lengths),
            policy_version=weights.version,
            unfinished=unfinished,
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


def as_judged(env_config: EnvConfig) -> EnvConfig:
    """A lost life ends nothing here, and a fall does: what counts is the game."""
    return env_config.model_copy(update={"episodic_life": False, "fixed_episode_steps": None})


def _waves(episodes: int, config: EvalConfig) -> Iterator[range]:
    """The numbers of the episodes that run side by side. A sampled action depends on the noise of its place in the
    batch: one episode at a time leaves no choice of it."""
    side_by_side = min(config.num_envs, ROWS) if config.greedy else 1
    for block in range(0, episodes, ROWS):
        end = min(block + ROWS, episodes)
        for first in range(block, end, side_by_side):
            yield range(first, min(first + side_by_side, end))


class Wave:
    """Episodes that run side by side, one per env of the group; reset when made."""

    def __init__(
        self,
        group: LocalGroup,
        policy: Policy,
        numbers: Sequence[int],
        seed: int,
        greedy: bool,
        recorder: EpisodeRecorder | None = None,
    ) -> None:
        self._group = group
        self._recorder = recorder
        self._policy = policy
        self._first = numbers[0]
        self._seed = seed
        self._greedy = greedy
        self._num_rows = ROWS if greedy else 1
        at = self._first % self._num_rows
        self._rows = slice(at, at + len(numbers))
        self._padded: dict[str, Array] = {}
        self._mask: Array | None = None
        self._show(group.reset([derive_seed(seed, "eval", i) >> 32 for i in numbers]))
        self.active = np.ones(len(numbers), bool)  # the episodes that go on

    def steps(self, limit: int) -> Iterator[Step]:
        """The steps of all, until each episode has ended or taken `limit` steps."""
        policy, num_rows = self._policy, self._num_rows
        starts, state = np.ones(num_rows, bool), policy.initial_recurrent_state(num_rows)
        for begin in range(0, limit, _CHUNK_STEPS):
            num_steps = min(_CHUNK_STEPS, limit - begin)
            noise = derive_seed(self._seed, "eval-noise", self._first, begin)
            rollout = policy.rollout(
                num_steps=num_steps, num_envs=num_rows, seed=noise, recurrent_state=state, greedy=self._greedy
            )
            for _ in range(num_steps):
                _, actions = rollout.act(self._padded, episode_starts=starts, action_mask=self._mask)
                step = self._group.step(actions[self._rows], self.active)
                if self._recorder is not None:
                    mask = None if self._mask is None else self._mask[self._rows]
                    self._recorder.take(self._shown(), mask, actions[self._rows], step)
                self._show(step)
                starts = np.zeros(num_rows, bool)
                self.active = self.active & ~(step.terminated | step.truncated)
                yield step
                if not self.active.any():
                    break
            if not self.active.any():
                break
            state = rollout.recurrent_state()
        if self._recorder is not None:
            self._recorder.end_wave(self._shown())

    def _shown(self) -> dict[str, Array]:
        """What these episodes show now."""
        return {name: array[self._rows] for name, array in self._padded.items()}

    def _show(self, shown: Reset | Step) -> None:
        """To the rows of these episodes; nobody is in the others."""
        for name, array in shown.observations.items():
            if name not in self._padded:
                self._padded[name] = np.zeros((self._num_rows, *array.shape[1:]), array.dtype)
            self._padded[name][self._rows] = array
        if shown.action_mask is not None:
            self._mask = np.ones((self._num_rows, shown.action_mask.shape[1]), bool)
            self._mask[self._rows] = shown.action_mask
