"""Upper confidence bounds: the arm that could be the best, for all that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.test_bed import SampleAverages, argmax


def upper_bounds(estimates: Array, pulls: Array, t: int, c: float) -> Array:
    """Q_t(a) + c sqrt(ln t / N_t(a)) of (2.10), of whatever shape; infinite for an arm that was never pulled."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds: Array = np.where(pulls > 0, estimates + c * np.sqrt(np.log(t) / pulls), np.inf)
    return bounds


class UCBConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["ucb"] = Field(default="ucb", description="the method")
    c: float = Field(default=1.0, gt=0, description="width of the confidence bounds")


class UCB:
    """A_t = argmax_a [Q_t(a) + c sqrt(ln t / N_t(a))], the book's (2.10), after Auer et al. (2002); Q by (2.3)."""

    Config = UCBConfig

    def __init__(self, num_problems: int, num_arms: int, config: UCBConfig) -> None:
        self._estimates = SampleAverages(num_problems, num_arms)
        self._c = config.c

    def choose(self, rng: np.random.Generator) -> Array:
        estimates = self._estimates
        t = int(estimates.pulls[0].sum()) + 1
        return argmax(upper_bounds(estimates.q, estimates.pulls, t, self._c), rng)

    def learn(self, arms: Array, rewards: Array) -> None:
        self._estimates.learn(arms, rewards)

    def arrays(self) -> Mapping[str, Array]:
        return self._estimates.arrays()

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._estimates.load(arrays)


BANDIT = UCB
