"""Greedy: always the best arm so far. It stays with the first that is good enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.test_bed import SampleAverages, argmax


class GreedyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["greedy"] = Field(default="greedy", description="the method")
    initial_value: float = Field(
        default=0.0, description="Q_1 of every arm; above what is possible: each is tried (the book's section 2.6)"
    )
    step_size: float | None = Field(default=None, gt=0, le=1, description="alpha; none: 1/n, the mean of the rewards")


class Greedy:
    """A = argmax_a Q(a), the book's (2.2); estimates by (2.3), or with a constant step size by (2.5)."""

    Config = GreedyConfig

    def __init__(self, num_problems: int, num_arms: int, config: GreedyConfig) -> None:
        self._estimates = SampleAverages(
            num_problems, num_arms, initial=config.initial_value, step_size=config.step_size
        )

    def choose(self, rng: np.random.Generator) -> Array:
        return argmax(self._estimates.q, rng)

    def learn(self, arms: Array, rewards: Array) -> None:
        self._estimates.learn(arms, rewards)

    def arrays(self) -> Mapping[str, Array]:
        return self._estimates.arrays()

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._estimates.load(arrays)


BANDIT = Greedy
