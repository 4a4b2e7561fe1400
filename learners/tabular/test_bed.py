"""The ten-armed test bed of the book's section 2.3: many problems side by side, so that a curve is their mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

import numpy as np

from rollcall.cluster.messages.arrays import Array


class Bandit(Protocol):
    """A method, on P problems of K arms each."""

    def choose(self, rng: np.random.Generator) -> Array:
        """int [P]: an arm of each problem."""

    def learn(self, arms: Array, rewards: Array) -> None:
        """Both [P]."""

    def arrays(self) -> Mapping[str, Array]:
        """All that it has learnt."""

    def load(self, arrays: Mapping[str, Array]) -> None: ...


class TestBed:
    """Of each problem the arms' mean rewards q_* are drawn from N(mean, 1); a pull gives N(q_*(a), 1)."""

    __test__ = False  # no class of tests

    def __init__(self, means: Array) -> None:
        """`means`: [P, K]."""
        self.means = means
        self._rows = np.arange(len(means))
        self._best = means.argmax(1)

    @classmethod
    def drawn(cls, num_problems: int, num_arms: int, rng: np.random.Generator, *, mean: float = 0.0) -> Self:
        return cls(mean + rng.standard_normal((num_problems, num_arms)))

    def pull(self, arms: Array, rng: np.random.Generator) -> Array:
        """[P]: rewards."""
        rewards: Array = self.means[self._rows, arms] + rng.standard_normal(len(arms))
        return rewards

    def regret(self, arms: Array) -> Array:
        """[P]: what the best arm would have given more, on average."""
        missed: Array = self.means[self._rows, self._best] - self.means[self._rows, arms]
        return missed

    def optimal(self, arms: Array) -> Array:
        """bool [P]"""
        found: Array = arms == self._best
        return found


class SampleAverages:
    """Q_n+1 = Q_n + (1/n) [R_n - Q_n], the book's (2.3), the mean of what each arm gave; with a constant step size
    (2.5), which forgets."""

    def __init__(
        self, num_problems: int, num_arms: int, *, initial: float = 0.0, step_size: float | None = None
    ) -> None:
        self.q: Array = np.full((num_problems, num_arms), initial)
        self.pulls: Array = np.zeros((num_problems, num_arms), np.int64)
        self._step_size = step_size
        self._rows = np.arange(num_problems)

    def learn(self, arms: Array, rewards: Array) -> None:
        at = (self._rows, arms)
        self.pulls[at] += 1
        step_size = 1.0 / self.pulls[at] if self._step_size is None else self._step_size
        self.q[at] += step_size * (rewards - self.q[at])

    def arrays(self) -> dict[str, Array]:
        return {"q": self.q, "pulls": self.pulls}

    def load(self, arrays: Mapping[str, Array]) -> None:
        self.q, self.pulls = np.array(arrays["q"]), np.array(arrays["pulls"])


def argmax(scores: Array, rng: np.random.Generator) -> Array:
    """int [P]: of each row's largest entries one at random."""
    best = scores == scores.max(1, keepdims=True)
    chosen: Array = np.where(best, rng.random(scores.shape), -1.0).argmax(1)
    return chosen
