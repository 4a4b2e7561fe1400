"""A table's learner: plays episodes, learns from them, and says what it has learnt, as the learner of a network does
with its batches. One process, no gradients."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rollcall.cluster.checkpoint import read_state, write_state, write_weights
from rollcall.cluster.errors import CheckpointDamaged
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.reports import StepOrder, StepReport
from rollcall.cluster.messages.weights import Weights, pack_weights
from rollcall.cluster.seeds import derive_seed
from rollcall.learners.tabular.action_values import ControlSettings, Explorer, Method
from rollcall.learners.tabular.play import DiscreteEnv, Played, play_episode
from rollcall.learners.tabular.test_bed import Bandit, TestBed

VALUES = "values"  # of the weights: [S, A], by whose largest entry the policy acts


@dataclass(frozen=True)
class Episodes:
    """A source of batches: the numbers of the episodes that are played in a learner step."""

    total: int
    per_step: int

    @property
    def steps(self) -> int:
        return -(-self.total // self.per_step)

    def take(self, step: int) -> Sequence[int] | None:
        """As BatchSource."""
        first = step * self.per_step
        return range(first, min(first + self.per_step, self.total)) if first < self.total else None


class TableLearner:
    """Episode i begins and is played alike in every run with the same seed, so all that a resumed run needs is what
    the method has learnt."""

    def __init__(
        self,
        env: DiscreteEnv,
        method: Method,
        settings: ControlSettings,
        *,
        num_episodes: int,
        seed: int,
        policy_id: str,
        max_steps: int,
        best: Array | None = None,
    ) -> None:
        """`best`: [S], the optimal values where they are known, NaN in states that do not count."""
        self._env = env
        self._method = method
        self._settings = settings
        self._num_episodes = num_episodes
        self._seed = seed
        self._policy_id = policy_id
        self._max_steps = max_steps
        self._best = best

    @property
    def values(self) -> Array:
        return self._method.values

    def weights(self, *, epoch: int, version: int) -> Weights:
        return pack_weights(self._policy_id, epoch, version, {VALUES: np.array(self._method.values)})

    def update(self, episodes: Sequence[int], order: StepOrder) -> tuple[StepReport, Weights | None]:
        """Plays these episodes, one after the other, and learns from each."""
        began = time.perf_counter()
        before = np.array(self._method.values)
        played = [self._play(episode) for episode in episodes]
        metrics = {
            **_summed_up(played),
            "epsilon": self._settings.epsilon_at(episodes[-1], self._num_episodes),
            "value_change": float(np.abs(self._method.values - before).max()),
        }
        if self._best is not None:
            metrics["value_error"] = float(np.sqrt(np.nanmean((self._method.values.max(1) - self._best) ** 2)))
        return _report(order, self._settings.step_size, began, metrics), None

    def _play(self, episode: int) -> Played:
        rng = np.random.default_rng(derive_seed(self._seed, "act", episode))
        explorer = Explorer(rng, self._settings.epsilon_at(episode, self._num_episodes))
        seed = derive_seed(self._seed, "episode", episode) >> 32
        return play_episode(self._env, self._method, explorer, seed=seed, max_steps=self._max_steps)

    def save(self, directory: Path, weights: Weights) -> None:
        write_weights(directory, weights)
        write_state(directory, "learner", self._method.arrays(), {})

    def restore(self, checkpoint: Path) -> None:
        """Takes up what `save` wrote. Raises CheckpointDamaged: when it is of another table."""
        self._method.load(_learnt(checkpoint, self._method.arrays()))


def _summed_up(played: Sequence[Played]) -> dict[str, float]:
    totals, lengths = [p.total for p in played], [p.length for p in played]
    return {
        "return_mean": float(np.mean(totals)),
        "return_min": min(totals),
        "return_max": max(totals),
        "episode_length_mean": float(np.mean(lengths)),
        "terminated_fraction": float(np.mean([p.terminated for p in played])),
        "episodes": len(played),
        "played_steps": sum(lengths),
    }


class BanditLearner:
    """A learner step is a pull in each of the problems."""

    def __init__(self, test_bed: TestBed, method: Bandit, *, seed: int, policy_id: str) -> None:
        self._test_bed = test_bed
        self._method = method
        self._seed = seed
        self._policy_id = policy_id
        self._regret = 0.0  # so far, the mean over the problems

    @property
    def regret(self) -> float:
        return self._regret

    def weights(self, *, epoch: int, version: int) -> Weights:
        return pack_weights(self._policy_id, epoch, version, dict(self._method.arrays()))

    def update(self, pulls: Sequence[int], order: StepOrder) -> tuple[StepReport, Weights | None]:
        began, rewards, optimal = time.perf_counter(), 0.0, 0.0
        for pull in pulls:
            rng = np.random.default_rng(derive_seed(self._seed, "pull", pull))
            arms = self._method.choose(rng)
            given = self._test_bed.pull(arms, rng)
            self._method.learn(arms, given)
            self._regret += float(self._test_bed.regret(arms).mean())
            rewards += float(given.mean()) / len(pulls)
            optimal += float(self._test_bed.optimal(arms).mean()) / len(pulls)
        metrics = {"mean_reward": rewards, "optimal_fraction": optimal, "regret": self._regret}
        return _report(order, 0.0, began, {**metrics, "played_steps": len(pulls)}), None

    def save(self, directory: Path, weights: Weights) -> None:
        write_weights(directory, weights)
        write_state(directory, "learner", self._method.arrays(), {"regret": self._regret})

    def restore(self, checkpoint: Path) -> None:
        """As of a table."""
        self._method.load(_learnt(checkpoint, self._method.arrays()))
        _, meta = read_state(checkpoint, "learner") or ({}, {})
        self._regret = float(meta["regret"])


def _report(order: StepOrder, step_size: float, began: float, metrics: Mapping[str, float]) -> StepReport:
    return StepReport(
        step=order.step,
        epoch=order.epoch,
        skipped=False,
        update_s=time.perf_counter() - began,
        wait_s=0.0,
        learning_rate=step_size,
        metrics=metrics,
    )


def _learnt(checkpoint: Path, own: Mapping[str, Array]) -> dict[str, Array]:
    """What a checkpoint has of a method whose own arrays are these. How many rows there are may be learnt, too."""
    state = read_state(checkpoint, "learner")
    if state is None:
        raise CheckpointDamaged(f"{checkpoint}: has no learner state")
    arrays, _ = state
    fits = arrays.keys() == own.keys() and all(arrays[name].shape[1:] == own[name].shape[1:] for name in own)
    if not fits:
        raise CheckpointDamaged(f"{checkpoint}: of another table or method")
    return arrays
