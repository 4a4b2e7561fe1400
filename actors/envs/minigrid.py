"""MiniGrid's envs as networks want them: cells as one-hots in place of codes, no text, and layouts that may be held
fixed. The package is imported where such an env is made."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.arrays import Array

_log = logging.getLogger(__name__)

Env = gym.Env[Any, Any]
LAYOUT_SEED_LIMIT = 2**31


def make_grid(name: str, make: Callable[..., Env], kwargs: Mapping[str, Any]) -> Env:
    """`make` with the env's own arguments; `layouts` among `kwargs` is ours.

    Raises:
      BadInput: where `layouts` is no list of seeds.
    """
    own = dict(kwargs)
    layouts = own.pop("layouts", None)
    if layouts is not None and not _are_seeds(layouts):
        raise BadInput(
            f"env {name!r}: env.kwargs.layouts={layouts!r}: give a list of seeds, a layout each, such as [0, 1, 2]"
        )
    env = make(**own)
    if layouts is not None:
        env = FixedLayouts(env, layouts)
    return OneHotCells(env, name)


def _are_seeds(layouts: object) -> bool:
    if not isinstance(layouts, list | tuple) or not layouts:
        return False
    return all(type(seed) is int and 0 <= seed < LAYOUT_SEED_LIMIT for seed in layouts)


class FixedLayouts(gym.Wrapper[Any, Any, Any, Any]):
    """Each episode is in one of these layouts, drawn alike. A layout is all that the env makes of that seed: where the
    agent begins, and what is drawn later, are part of it."""

    def __init__(self, env: Env, seeds: list[int]) -> None:
        super().__init__(env)
        self._seeds = tuple(seeds)
        self._draw = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._draw = np.random.default_rng(seed)
        layout = self._seeds[int(self._draw.integers(len(self._seeds)))]
        return self.env.reset(seed=layout, options=options)


class OneHotCells(gym.ObservationWrapper[Any, Any, Any]):
    """`image`: [width, height, 20], of each cell in view its object (11), colour (6) and state (3) as one-hots, 0 or 1;
    `direction`: which way the agent looks. The mission is left out."""

    def __init__(self, env: Env, name: str) -> None:
        super().__init__(env)
        spaces = env.observation_space
        assert isinstance(spaces, gym.spaces.Dict)
        mission = spaces["mission"]
        if getattr(mission, "ordered_placeholders", None):
            _log.warning("env %s: its mission differs between episodes and is text: the policy is not shown it", name)
        width, height, _ = spaces["image"].shape or ()
        known = importlib.import_module("minigrid.core.constants")
        sizes = [len(codes) for codes in (known.OBJECT_TO_IDX, known.COLOR_TO_IDX, known.STATE_TO_IDX)]
        self._tables = tuple(np.eye(size, dtype=np.uint8) for size in sizes)
        self.observation_space = gym.spaces.Dict(
            {
                "image": gym.spaces.Box(0, 1, (width, height, sum(sizes)), np.uint8),
                "direction": gym.spaces.Discrete(4),
            }
        )

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        codes: Array = observation["image"]
        parts = [table[codes[..., k]] for k, table in enumerate(self._tables)]
        return {"image": np.concatenate(parts, -1), "direction": observation["direction"]}
