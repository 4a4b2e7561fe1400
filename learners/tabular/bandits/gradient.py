"""The gradient bandit: preferences that climb along the expected reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.messages.arrays import Array


def softmax(preferences: Array) -> Array:
    """[P, K]: pi_t(a) = exp(H_t(a)) / sum_b exp(H_t(b)), the book's (2.11)."""
    exponents = np.exp(preferences - preferences.max(1, keepdims=True))
    chances: Array = exponents / exponents.sum(1, keepdims=True)
    return chances


class GradientBanditConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["gradient"] = Field(default="gradient", description="the method")
    step_size: float = Field(default=0.1, gt=0, description="alpha")
    baseline: bool = Field(default=True, description="rewards are held against their mean so far; false: against 0")


class GradientBandit:
    """H(A) <- H(A) + alpha (R - Rbar) (1 - pi(A)) and, of the other arms, H(a) <- H(a) - alpha (R - Rbar) pi(a): the
    book's (2.12). Rbar is the mean of the rewards so far, this one among them."""

    Config = GradientBanditConfig

    def __init__(self, num_problems: int, num_arms: int, config: GradientBanditConfig) -> None:
        self._config = config
        self._preferences: Array = np.zeros((num_problems, num_arms))
        self._mean: Array = np.zeros(num_problems)
        self._t = 0

    def choose(self, rng: np.random.Generator) -> Array:
        reached = softmax(self._preferences).cumsum(1) > rng.random((len(self._preferences), 1))
        reached[:, -1] = True  # the sum may fall short of 1 by rounding
        chosen: Array = reached.argmax(1)
        return chosen

    def learn(self, arms: Array, rewards: Array) -> None:
        self._t += 1
        self._mean += (rewards - self._mean) / self._t
        better = self._config.step_size * (rewards - (self._mean if self._config.baseline else 0.0))
        chances = softmax(self._preferences)
        self._preferences -= better[:, None] * chances
        self._preferences[np.arange(len(arms)), arms] += better

    def arrays(self) -> Mapping[str, Array]:
        return {"preferences": self._preferences, "mean": self._mean, "pulls": np.array([self._t])}

    def load(self, arrays: Mapping[str, Array]) -> None:
        self._preferences, self._mean = np.array(arrays["preferences"]), np.array(arrays["mean"])
        self._t = int(arrays["pulls"][0])


BANDIT = GradientBandit
