"""Observations that are tuples, as Blackjack's are, under names: a Tuple is shown as a Dict of "0", "1", ..., at any
depth. What comes after knows of Dicts alone."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

Env = gym.Env[Any, Any]
Space = gym.Space[Any]


def with_named_tuples(env: Env) -> Env:
    """The env itself, if it shows no tuple."""
    return _Named(env) if _has_tuple(getattr(env, "observation_space", None)) else env  # which may have no space


class _Named(gym.ObservationWrapper[Any, Any, Any]):
    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.observation_space = _named(env.observation_space)

    def observation(self, observation: Any) -> Any:
        return _shown(observation, self.env.observation_space)


def _has_tuple(space: Space | None) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return any(map(_has_tuple, space.spaces.values()))
    return isinstance(space, gym.spaces.Tuple)


def _named(space: Space) -> Space:
    parts = _parts(space)
    return space if parts is None else gym.spaces.Dict({str(key): _named(part) for key, part in parts.items()})


def _shown(observation: Any, space: Space) -> Any:
    """What is no such observation is left as it is, for whoever holds it against the space."""
    parts = _parts(space)
    if parts is None or not isinstance(observation, dict | tuple | list):
        return observation
    given = observation if isinstance(observation, dict) else dict(enumerate(observation))
    return {str(key): _shown(value, parts[key]) if key in parts else value for key, value in given.items()}


def _parts(space: Space) -> dict[Any, Space] | None:
    if isinstance(space, gym.spaces.Tuple):
        return dict(enumerate(space.spaces))
    return dict(space.spaces) if isinstance(space, gym.spaces.Dict) else None
