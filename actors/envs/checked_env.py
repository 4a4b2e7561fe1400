"""An env whose every answer was looked at where it was given, in arrays of its own: for whoever keeps answers (a stack
of frames), or writes them into memory of a fixed shape (an env in a process of its own)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.actors.envs.action_masks import mask_method, tell_unread
from rollcall.actors.envs.contract import ContractError, as_flag, as_number, misunderstanding, read_reset
from rollcall.actors.envs.observations import ObservationReader, observed_space


class CheckedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Shows `observed_space`; the action mask, whichever way it was given, is in the info, which holds nothing else.

    Raises:
      ContractError: where an answer is not what gymnasium or the env's spaces ask for.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._reader = ObservationReader(env.observation_space, env.action_space)
        self._mask_method = mask_method(env, env.action_space)
        self._no_mask: dict[str, Any] = {}  # after the first mask: that everything is allowed
        self.observation_space = observed_space(env.observation_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        given = {name: value for name, value in (("seed", seed), ("options", options)) if value is not None}
        observation, info = read_reset(self._asked(self.env.reset, **given))
        if info and self._mask_method is None:
            tell_unread(str(self.env), self.observation_space, info)
        return self._reader.copied(observation), self._mask(observation, info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._asked(self._step, action)
        ended = as_flag("terminated", terminated), as_flag("truncated", truncated)
        mask = self._no_mask if any(ended) else self._mask(observation, info)  # nobody acts on an end
        return self._reader.copied(observation), as_number("reward", reward), *ended, mask

    def _step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, info

    def _asked(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            words = misunderstanding(error)
            if words is None:
                raise
            raise ContractError(words) from error

    def _mask(self, observation: Any, info: Mapping[str, Any]) -> dict[str, Any]:
        mask = self._reader.mask_of(observation, info) if info or self._reader.has_mask else None
        if mask is None and self._mask_method is not None:
            mask = self._reader.mask(self._mask_method())
        if mask is None:
            return self._no_mask
        self._no_mask = {"action_mask": np.ones_like(mask)}
        return {"action_mask": mask.copy()}
