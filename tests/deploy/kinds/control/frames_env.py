"""An env of small images: a bright column wanders, and the action that names its half is paid."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rollcall.cluster.messages.arrays import Array


class Frames(gym.Env[Any, Any]):
    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = 12
        return self._shown(), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        reward = float(action == int(self._column >= 18))
        self._left -= 1
        return self._shown(), reward, False, self._left == 0, {}

    def _shown(self) -> Array:
        self._column = int(self.np_random.integers(36))
        frame = np.zeros((36, 36, 1), np.uint8)
        frame[:, self._column] = 255
        return frame
