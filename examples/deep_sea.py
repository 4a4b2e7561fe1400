"""Deep Sea (Osband et al., 2020, "Behaviour suite for reinforcement learning", arXiv:1908.03568): a treasure that only
N steps to the right in a row reach, each of which costs a little. Chance finds it once in 2^N episodes.

rollcall train mountaincar-rnd env=deep_sea:make      # in this directory
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

DEPTH = 20
COST = 0.01 / DEPTH  # of a step to the right


class DeepSea(gym.Env[Any, Any]):
    """A square of DEPTH x DEPTH cells, entered at the top left; each step goes one cell down, and to a side. Which
    action is "right" differs from cell to cell. The best return is 0.99; to stay out of it all gives 0."""

    observation_space = gym.spaces.Box(0.0, 1.0, (DEPTH * DEPTH,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.right = np.random.default_rng(7).integers(0, 2, (DEPTH, DEPTH))
        self.row = self.column = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.row = self.column = 0
        return self._seen(), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        goes_right = int(action) == self.right[self.row, self.column]
        reward = -COST if goes_right else 0.0
        if goes_right and self.column == DEPTH - 1:
            reward += 1.0
        self.column = min(DEPTH - 1, self.column + 1) if goes_right else max(0, self.column - 1)
        self.row += 1
        return self._seen(), reward, self.row == DEPTH, False, {}

    def _seen(self) -> np.ndarray[Any, Any]:
        shown = np.zeros((DEPTH, DEPTH), np.float32)
        if self.row < DEPTH:
            shown[self.row, self.column] = 1.0
        return shown.reshape(-1)


def make() -> gym.Env[Any, Any]:
    return DeepSea()
