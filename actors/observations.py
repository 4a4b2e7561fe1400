"""Observations and action masks under plain names: a nested Dict becomes names joined with ".", and the mask, wherever
the env gives it, is taken out. Knows nothing of stepping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.cluster.errors import BadInput, NonFinite
from rollcall.cluster.messages import Array

PLAIN_NAME = "observation"
MASK_KEY = "action_mask"

Space = gym.Space[Any]
_OBSERVABLE = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
_ACTIONS = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete)


def observed_space(space: Space) -> Space:
    """What the policy is shown: the env's observation space without the action mask that may be in it."""
    if isinstance(space, gym.spaces.Dict) and MASK_KEY in space.spaces:
        return gym.spaces.Dict({name: item for name, item in space.spaces.items() if name != MASK_KEY})
    return space


def check_spaces(name: str, observation: Space, action: Space) -> None:
    """Raises BadInput, naming the env and the space, where one is not supported."""
    for path, space in _leaves(observed_space(observation), ()):
        if not isinstance(space, _OBSERVABLE) or space.dtype is None or space.dtype.kind not in "biuf":
            where = f" at {'.'.join(path)!r}" if path else ""
            raise BadInput(
                f"env {name}: observation space {space}{where} is not supported: wrap the env so that it shows Box, "
                "Discrete, MultiDiscrete, MultiBinary or a Dict of those"
            )
    if not isinstance(action, _ACTIONS) or (isinstance(action, gym.spaces.Box) and action.dtype.kind != "f"):
        raise BadInput(
            f"env {name}: action space {action} is not supported: wrap the env so that it takes Discrete, "
            "MultiDiscrete or a Box of floats"
        )


def _leaves(space: Space, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Space]]:
    if not isinstance(space, gym.spaces.Dict):
        return [(path, space)]
    return [leaf for name, item in space.spaces.items() for leaf in _leaves(item, (*path, str(name)))]


class ObservationReader:
    """Reads one env's observations, or a batch of them, by name."""

    def __init__(self, space: Space) -> None:
        self.has_mask = isinstance(space, gym.spaces.Dict) and MASK_KEY in space.spaces
        self._paths = {".".join(path) or PLAIN_NAME: path for path, _ in _leaves(observed_space(space), ())}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path, leaf in _leaves(observed_space(space), ()):
            name = ".".join(path) or PLAIN_NAME
            assert leaf.dtype is not None
            # float64 would double what travels, and every network computes in float32 anyway.
            self._dtypes[name] = np.dtype(np.float32) if leaf.dtype.kind == "f" else np.dtype(leaf.dtype)
            self._shapes[name] = leaf.shape or ()

    def zeros(self, *leading: int) -> dict[str, Array]:
        """Arrays for observations: name -> [*leading, ...]."""
        return {name: np.zeros((*leading, *shape), self._dtypes[name]) for name, shape in self._shapes.items()}

    def read(self, observation: Any) -> dict[str, Array]:
        """By name, in the dtypes of `zeros`. Views where they can be."""
        named = {}
        for name, path in self._paths.items():
            value = observation
            for key in path:
                value = value[key]
            named[name] = np.asarray(value, self._dtypes[name])
        return named

    def write(self, observation: Any, into: Mapping[str, Array], row: int) -> None:
        """Puts one env's observation into row `row` of arrays made by `zeros`."""
        for name, path in self._paths.items():
            value = observation
            for key in path:
                value = value[key]
            into[name][row] = value

    def mask_of(self, observation: Any, info: Mapping[str, Any]) -> Array | None:
        """bool [..., num_actions], from the observation or the info; None where neither has one."""
        value = observation[MASK_KEY] if self.has_mask else info.get(MASK_KEY)
        if value is None:
            return None
        if isinstance(value, tuple):  # gymnasium's mask of a MultiDiscrete space: one array per choice
            value = np.concatenate(value, axis=-1)
        return np.asarray(value).astype(bool)


def is_finite(array: Array) -> bool:
    """Whether every element is. A dot product with itself is a tenth of the time of numpy's isfinite().all() on the
    sizes that matter here, and only where it overflows is there more to look at."""
    if array.dtype.kind != "f":
        return True
    flat = array.ravel("K")
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(array).all())


def refuse_non_finite(name: str, field: str, array: Array, *, step: int, rows: Array | None = None) -> None:
    """Raises NonFinite naming env, step and field if a row of `array` [B, ...] is not finite.

    `rows` are the env indices of the rows; default: all.
    """
    if is_finite(array):
        return
    bad = np.argwhere(~np.isfinite(array))[0]
    row = int(bad[0]) if rows is None else int(rows[bad[0]])
    where = f"[{', '.join(str(int(i)) for i in bad[1:])}]" if len(bad) > 1 else ""
    raise NonFinite(f"{name}: env {row} gave {array[tuple(bad)]} in {field}{where} at its shard's step {step}")
