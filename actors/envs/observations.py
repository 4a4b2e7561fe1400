"""Observations under plain names: a nested Dict becomes names joined with ".", the action mask is taken out, and what
an env shows is held against what its space says."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.actors.envs.action_masks import MASK_KEYS, mask_key, num_choices, read_mask
from rollcall.actors.envs.contract import ContractError, described
from rollcall.cluster.errors import BadInput, EnvFailure, NonFinite
from rollcall.cluster.messages.arrays import Array

PLAIN_NAME = "observation"

Space = gym.Space[Any]
_OBSERVABLE = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
_ACTIONS = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete)
_INTEGERS = frozenset({int, np.int64, np.int32})
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def observed_space(space: Space) -> Space:
    """What the policy is shown: the env's observation space without the action mask that may be in it."""
    mask = mask_key(space)
    if mask is not None:
        assert isinstance(space, gym.spaces.Dict)
        return gym.spaces.Dict({name: item for name, item in space.spaces.items() if name != mask})
    return space


def check_spaces(name: str, observation: Space, action: Space) -> None:
    """Raises BadInput, naming the env and the space, where one is not supported."""
    for path, space in _leaves(observed_space(observation), ()):
        if not isinstance(space, _OBSERVABLE) or space.dtype is None or space.dtype.kind not in "biuf":
            where = f" at {'.'.join(path)!r}" if path else ""
            raise BadInput(
                f"env {name}: observation space {space}{where} is not supported: wrap the env so that it shows Box, "
                "Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of those"
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


class _Leaf:
    """One plain space of an observation: what an array out of it is like."""

    def __init__(self, path: tuple[str, ...], space: Space) -> None:
        assert space.dtype is not None
        self.path = path
        self.name = ".".join(path) or PLAIN_NAME
        self.field = f"observation {self.name!r}" if path else "observation"
        self.shape: tuple[int, ...] = space.shape or ()
        # A float64 stays one until it is normalised: float32 counts in whole seconds only up to half a year.
        wide = space.dtype == np.float64
        self.dtype = np.dtype(np.float64 if wide else np.float32) if space.dtype.kind == "f" else np.dtype(space.dtype)
        self.is_float = self.dtype.kind == "f"
        self.is_choice = isinstance(space, gym.spaces.Discrete)
        self.low: Any
        self.high: Any
        self.low, self.high = (-math.inf, math.inf) if self.is_float else map(_shortest, _whole_bounds(space))
        # Whether a number of the dtype can be out of the space's bounds: a byte cannot be out of 0..255.
        self.bounded = False
        if self.dtype.kind in "iu":
            limits: Any = np.iinfo(self.dtype)
            self.bounded = bool(np.any(self.low > limits.min) or np.any(self.high < limits.max))
        self._is_byte_image = self.dtype == np.uint8 and bool(np.all(self.high == 255))

    def of(self, observation: Any) -> Any:
        """This leaf's part of a (nested) observation."""
        try:
            for key in self.path:
                observation = observation[int(key) if isinstance(observation, tuple) else key]
        except (KeyError, TypeError, IndexError, ValueError):
            raise ContractError(
                f"its observation ({described(observation)}) has no {self.path[-1]!r}, which observation_space has"
            ) from None
        return observation

    def converted(self, value: Any, lead: tuple[int, ...] = ()) -> Array:
        """[*lead, *shape]: the value in a dtype that can be cast to this leaf's without loss; a view where it can be.

        Raises:
          ContractError: for what is no array of numbers of this shape, or does not fit the dtype.
        """
        array = self.numbers(value)
        shape = (*lead, *self.shape)
        if array.shape != shape:
            if lead or array.size != 1 or math.prod(shape) != 1:
                raise ContractError(
                    f"its {self.field} has shape {array.shape}, and observation_space says {shape}: fix one of them"
                )
            array = array.reshape(shape)  # one number is one number
        if self.is_float or array.dtype == self.dtype:
            return array
        if array.dtype.kind == "f" and not self._is_whole(array):
            raise ContractError(
                f"its {self.field} holds {_example(array, array != np.floor(array))} ({array.dtype}), and "
                f"observation_space is of {self.dtype}: cast it, or declare a Box of floats"
            )
        self.check_bounds(array)
        return array.astype(self.dtype)

    def is_outside(self, array: Array) -> Any:
        """bool, as the array: where a whole number is out of the space's bounds."""
        return (array < self.low) | (array > self.high)

    def check_bounds(self, array: Array) -> None:
        """Raises ContractError where a whole number is out of the space's bounds."""
        outside = np.asarray(self.is_outside(array))
        if outside.any():
            raise ContractError(
                f"its {self.field} holds {_example(array, outside)}, and observation_space goes from {self.low} to "
                f"{self.high}: fix one of them"
            )

    def numbers(self, value: Any) -> Array:
        """As an array of numbers, of whatever shape."""
        try:
            array = np.asarray(value)
            if array.dtype.kind == "O" and all(isinstance(item, numbers.Real) for item in array.flat):
                array = array.astype(np.float64)
        except Exception as error:
            raise ContractError(f"its {self.field} cannot be made an array ({error})") from None
        if array.dtype.kind not in "biuf":
            raise ContractError(f"its {self.field} is {described(value)}, and no array of numbers: return one")
        return array

    def _is_whole(self, array: Array) -> bool:
        """Whether floats are the whole numbers that the space asks for. Pixels of 0..1 in a byte image are not, though
        some of them look like it."""
        if not bool((array == np.floor(array)).all()):
            return False
        return not self._is_byte_image or not 0.0 < float(array.max(initial=0.0)) <= 1.0


def _whole_bounds(space: Space) -> tuple[Any, Any]:
    """(lowest, highest) number of a space of whole numbers, each for all or per element."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.start), int(space.start) + int(space.n) - 1
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, gym.spaces.Box):
        return space.low, space.high
    return 0, 1


def _shortest(bound: Any) -> Any:
    """A bound as one number, where it is the same for all elements."""
    values = np.unique(bound)
    return int(values[0]) if len(values) == 1 else bound


def _example(array: Array, where: Array) -> str:
    """The first element of those, with its place; where none is, the largest."""
    at = np.argwhere(where)
    index = tuple(int(i) for i in (at[0] if len(at) else np.unravel_index(int(array.argmax()), array.shape)))
    place = f" at [{', '.join(map(str, index))}]" if index else ""
    return f"{array[index]!s}{place}"


class ObservationReader:
    """Reads one env's observations, or a batch of them, by name, and its action masks."""

    def __init__(self, space: Space, action_space: Space) -> None:
        self._mask_key = mask_key(space)
        self._choices = num_choices(action_space)
        self.has_mask = self._mask_key is not None  # in every observation
        self.masks_actions = bool(self._choices)  # whether actions of this space can be masked
        self._space = observed_space(space)
        self._all = [_Leaf(path, leaf) for path, leaf in _leaves(self._space, ())]
        self._bounded = [leaf for leaf in self._all if leaf.bounded]

    def zeros(self, *leading: int) -> dict[str, Array]:
        """Arrays for observations: name -> [*leading, ...]."""
        return {leaf.name: np.zeros((*leading, *leaf.shape), leaf.dtype) for leaf in self._all}

    def read(self, observation: Any, *lead: int) -> dict[str, Array]:
        """By name [*lead, ...], in the dtypes of `zeros`. Views where they can be.

        Raises:
          ContractError: where an array is not what the space says.
        """
        named = {}
        for leaf in self._all:
            value = leaf.of(observation) if leaf.path else observation
            if type(value) is not np.ndarray or value.dtype is not leaf.dtype or value.shape != (*lead, *leaf.shape):
                value = leaf.converted(value, lead).astype(leaf.dtype, copy=False)
            named[leaf.name] = value
        return named

    def read_one_or_batch(self, observation: Any) -> tuple[dict[str, Array], bool]:
        """(As `read`, [B, ...], their values looked at; whether it was one observation, of which B = 1 is made.)

        Raises:
          ContractError: where an array is not what the space says, or one leaf is a batch and another is none.
        """
        first = self._all[0]
        given = first.numbers(first.of(observation))
        extra = given.ndim - len(first.shape)
        if extra not in (0, 1):
            raise ContractError(f"observations have shapes {given.shape}: give one of {self._space}, or a batch")
        single = extra == 0
        named = self.read(observation) if single else self.read(observation, len(given))
        for leaf in self._bounded:
            leaf.check_bounds(named[leaf.name])
        return ({name: array[None] for name, array in named.items()} if single else named), single

    def write(self, observation: Any, into: Mapping[str, Array], row: int) -> None:
        """Puts one env's observation into row `row` of arrays made by `zeros`.

        Raises:
          ContractError: where an array is not what the space says.
        """
        for leaf in self._all:
            value = leaf.of(observation) if leaf.path else observation
            if leaf.is_choice:
                if type(value) not in _INTEGERS or not leaf.low <= value <= leaf.high:
                    value = leaf.converted(value)
                    leaf.check_bounds(value)
            elif type(value) is not np.ndarray or value.dtype is not leaf.dtype or value.shape != leaf.shape:
                value = leaf.converted(value)
            into[leaf.name][row] = value

    def copied(self, observation: Any) -> Any:
        """One env's observation as `observed_space` has it, in arrays of its own, checked in all."""
        named = {name: np.array(array) for name, array in self.read(observation).items()}
        for leaf in self._bounded:
            leaf.check_bounds(named[leaf.name])
        return self._nested(named, self._space, ())

    def _nested(self, named: Mapping[str, Array], space: Space, path: tuple[str, ...]) -> Any:
        if not isinstance(space, gym.spaces.Dict):
            return named[".".join(path) or PLAIN_NAME]
        return {key: self._nested(named, item, (*path, str(key))) for key, item in space.spaces.items()}

    def check(
        self,
        env: str,
        observations: Mapping[str, Array],
        *,
        step: int,
        rows: Array | None = None,
        written: bool = False,
    ) -> None:
        """Looks at the values of a batch [B, ...]; `rows` are its env indices (default: all). `written`: by `write`,
        which has looked at choices already.

        Raises:
          NonFinite: naming env, step and field.
          EnvFailure: naming them, for whole numbers out of the space's bounds.
        """
        for leaf in self._all:
            array = observations[leaf.name]
            if leaf.is_float:
                refuse_non_finite(env, leaf.name, array, step=step, rows=rows)
            elif leaf.bounded and not (written and leaf.is_choice) and leaf.is_outside(array).any():
                outside = leaf.is_outside(array).reshape(len(array), -1).any(axis=1)
                first = int(np.flatnonzero(outside)[0])
                row = first if rows is None else int(rows[first])
                try:
                    leaf.check_bounds(array[first])
                except ContractError as error:
                    raise EnvFailure(f"{env}: env {row}, step {step}: {error}") from None

    def mask_of(self, observation: Any, info: Mapping[str, Any], *lead: int) -> Array | None:
        """bool [*lead, num_actions], from the observation or the info; None where neither has one.

        Raises:
          ContractError: where it is no mask.
        """
        if self._mask_key is not None:
            value = observation[self._mask_key]
        elif isinstance(info, Mapping):
            value = next((info[key] for key in MASK_KEYS if info.get(key) is not None), None)
        else:
            raise ContractError(f"its info is {described(info)}: return a dict")
        return None if value is None else self.mask(value, *lead)

    def mask(self, value: Any, *lead: int) -> Array:
        """bool [*lead, num_actions]: `value` is the env's. Raises ContractError where it is no mask."""
        return read_mask(value, self._choices, lead)


def is_finite(array: Array) -> bool:
    """Whether every element is, as float32 too. A dot product with itself is a tenth of the time of numpy's
    isfinite().all() on the sizes that matter here, and only where it overflows is there more to look at."""
    if array.dtype.kind != "f":
        return True
    flat = array.ravel("K")
    if array.dtype.itemsize < 8:
        return math.isfinite(flat.dot(flat)) or bool(np.isfinite(array).all())
    return bool(flat.dot(flat) < _FLOAT32_MAX**2) or bool((np.abs(array) <= _FLOAT32_MAX).all())


def refuse_non_finite(name: str, field: str, array: Array, *, step: int, rows: Array | None = None) -> None:
    """Raises NonFinite naming env, step and field if a row of `array` [B, ...] is not finite.

    `rows` are the env indices of the rows; default: all.
    """
    if is_finite(array):
        return
    bad = np.argwhere(~(np.abs(array) <= _FLOAT32_MAX))[0]
    row = int(bad[0]) if rows is None else int(rows[bad[0]])
    where = f"[{', '.join(str(int(i)) for i in bad[1:])}]" if len(bad) > 1 else ""
    raise NonFinite(f"{name}: env {row} gave {array[tuple(bad)]} in {field}{where} at its shard's step {step}")
