"""Thompson sampling: the arm that is best in a world drawn from what is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.test_bed import SampleAverages


class ThompsonConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["thompson"] = Field(default="thompson", description="the method")
    prior_mean: float = Field(default=0.0, description="of an arm's mean reward")
    prior_std: float = Field(default=1.0, gt=0, description="of an arm's mean reward, around that")
    reward_std: float = Field(default=1.0, gt=0, description="of a reward around its arm's mean, which is known")


class Thompson:
    """Of each arm a mean reward is drawn from its posterior, and the arm with the largest is pulled: Thompson (1933),
    for Gaussians as in Russo et al. (2018, arXiv:1707.02038). After n rewards with mean Q the posterior has the
    precision 1/prior_std^2 + n/reward_std^2, and its mean is that of prior_mean and Q weighed by these two."""

    Config = ThompsonConfig

    def __init__(self, num_problems: int, num_arms: int, config: ThompsonConfig) -> None:
        self._estimates = SampleAverages(num_problems, num_arms)
        self._config = config

    def posterior(self) -> tuple[Array, Array]:
        """(mean, standard deviation), both [P, K]."""
        prior, seen = self._config.prior_std**-2, self._estimates.pulls * self._config.reward_std**-2
        mean = (prior * self._config.prior_mean + seen * self._estimates.q) / (prior + seen)
        return mean, (prior + seen) ** -0.5

    def choose(self, rng: np.random.Generator) -> Array:
        mean, std = self.posterior()
        chosen: Array = (mean + std * rng.standard_normal(mean.shape)).argmax(1)
        return chosen

    def learn(self, arms: Array, rewards: Array) -> None:
        self._estimates.learn(arms, rewards)

    def arrays(self) -> Mapping[str, Array]:
        return self._estimates.arrays()

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._estimates.load(arrays)


BANDIT = Thompson
