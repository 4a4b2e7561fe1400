"""Epsilon-greedy: mostly the best arm so far, now and then any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.test_bed import SampleAverages, argmax


class EpsilonGreedyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["epsilon_greedy"] = Field(default="epsilon_greedy", description="the method")
    epsilon: float = Field(default=0.1, ge=0, le=1, description="probability of an arm at random")
    initial_value: float = Field(default=0.0, description="Q_1 of every arm; above what is possible: it is tried (2.6)")
    step_size: float | None = Field(default=None, gt=0, le=1, description="alpha; none: 1/n, the mean of the rewards")


class EpsilonGreedy:
    """A = argmax_a Q(a) (the book's 2.2) with probability 1 - epsilon, else an arm at random; estimates by (2.3)."""

    Config = EpsilonGreedyConfig

    def __init__(self, num_problems: int, num_arms: int, config: EpsilonGreedyConfig) -> None:
        self._estimates = SampleAverages(
            num_problems, num_arms, initial=config.initial_value, step_size=config.step_size
        )
        self._epsilon = config.epsilon

    def choose(self, rng: np.random.Generator) -> Array:
        num_problems, num_arms = self._estimates.q.shape
        at_random = rng.random(num_problems) < self._epsilon
        chosen: Array = np.where(at_random, rng.integers(num_arms, size=num_problems), argmax(self._estimates.q, rng))
        return chosen

    def learn(self, arms: Array, rewards: Array) -> None:
        self._estimates.learn(arms, rewards)

    def arrays(self) -> Mapping[str, Array]:
        return self._estimates.arrays()

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._estimates.load(arrays)


BANDIT = EpsilonGreedy
