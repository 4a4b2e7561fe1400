"""Gymnasium's spaces as JSON, for files that outlive the process, and back."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.actors.envs.observations import Space
from rollcall.cluster.messages.arrays import Array


def space_text(space: Space) -> str:
    """Of a space that `check_spaces` lets pass."""
    return json.dumps(_plain(space))


def space_of(text: str) -> Space:
    """What `space_text` was given.

    Raises:
      ValueError: where the text is of no space.
    """
    try:
        return _space(json.loads(text))
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RecursionError) as error:
        raise ValueError(f"{text[:80]!r} is no space: {' '.join(str(error).split())[:100]}") from None


def alike(one: Space, other: Space) -> bool:
    """Whether observations of both have the same parts, shapes and kinds of numbers; their bounds may differ."""
    if isinstance(one, gym.spaces.Dict) and isinstance(other, gym.spaces.Dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, gym.spaces.Tuple) and isinstance(other, gym.spaces.Tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, gym.spaces.Box) and isinstance(other, gym.spaces.Box):
        return one.shape == other.shape and one.dtype == other.dtype
    return one == other


def _plain(space: Space) -> dict[str, Any]:
    if isinstance(space, gym.spaces.Dict):
        return {"kind": "Dict", "spaces": {str(name): _plain(inner) for name, inner in space.spaces.items()}}
    if isinstance(space, gym.spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    dtype = str(np.dtype(space.dtype))
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": dtype}
    if isinstance(space, gym.spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    assert isinstance(space, gym.spaces.Box), f"{space} was let pass"
    bounds = {"low": _bound(space.low), "high": _bound(space.high)}
    return {"kind": "Box", "shape": list(space.shape), "dtype": dtype, **bounds}


def _bound(array: Array) -> Any:
    """One number where all are the same: images have many."""
    return array.flat[0].item() if array.size and (array == array.flat[0]).all() else array.tolist()


def _space(tree: dict[str, Any]) -> Space:
    kind = tree["kind"]
    if kind == "Dict":
        return gym.spaces.Dict({name: _space(inner) for name, inner in tree["spaces"].items()})
    if kind == "Discrete":
        return gym.spaces.Discrete(tree["n"], start=tree["start"])
    if kind == "MultiBinary":
        return gym.spaces.MultiBinary(tree["n"])
    dtype: Any = np.dtype(tree["dtype"])
    if kind == "MultiDiscrete":
        start = np.array(tree["start"], dtype)
        return gym.spaces.MultiDiscrete(np.array(tree["nvec"], dtype), dtype=dtype.type, start=start)
    if kind != "Box":
        raise ValueError(f"{str(kind)[:40]!r} is no kind of space")
    shape = tuple(tree["shape"])
    low, high = (np.broadcast_to(np.array(tree[side], dtype), shape).copy() for side in ("low", "high"))
    return gym.spaces.Box(low, high, shape, dtype.type)
