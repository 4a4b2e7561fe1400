"""An environment that shows a mask of its actions in its observation, and ends an episode that breaks it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Masked(gym.Env[Any, Any]):
    """Three actions of which at each step one, that changes, is not allowed."""

    observation_space = gym.spaces.Dict(
        {
            "seen": gym.spaces.Box(-1.0, 1.0, (3,), np.float32),
            "kind": gym.spaces.Discrete(4),
            "action_mask": gym.spaces.MultiBinary(3),
        }
    )
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self._mask[int(action)], "an action that the mask forbids"
        self._step += 1
        return self._shown(), float(action), False, self._step >= 10, {}

    def _shown(self) -> dict[str, Any]:
        self._mask = np.ones(3, np.int8)
        self._mask[int(self.np_random.integers(3))] = 0
        seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return {"seen": seen, "kind": int(self.np_random.integers(4)), "action_mask": self._mask}
