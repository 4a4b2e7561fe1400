"""The state of live objects as plain data, without pickle: attributes are read into JSON and arrays, and written back
into objects that were built afresh in the same way. What is not plain data, and not there in the fresh object, is
refused."""

from __future__ import annotations

import enum
import random
import sys
import types
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from rollcall.cluster.messages.arrays import Array

Node = Any  # JSON: [kind, ...]

_SCALARS = (bool, int, float, str, type(None))
# What belongs to the code or to the construction, and is the same in an object built afresh. An object that hides state
# in one of these is found out by the round trip, not here.
_CONSTANT = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    np.ufunc,
    np.dtype,
    gym.envs.registration.EnvSpec,
)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by Python code, whose state is all in its attributes
_MISSING: Any = object()


class UnsupportedStateError(Exception):
    """Something that is not plain data. The text is the path to it."""


@runtime_checkable
class Replayable(Protocol):
    """What hides its state, but knows what it came from, and can go through it again."""

    def replayable_state(self) -> dict[str, Any]: ...

    def replay(self, state: dict[str, Any]) -> None: ...


class Capture:
    """Reads an object's state. Arrays are collected in `arrays`, copied."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._seen: dict[int, int] = {}  # id -> number, of what may be shared or refer to itself
        self._alive: list[Any] = []  # so that no id is given out twice

    def node(self, value: Any, path: str) -> Node:
        if type(value) in _SCALARS:
            return ["v", value]
        if isinstance(value, enum.Enum):
            return ["enum", value.name]
        if isinstance(value, np.generic):
            return ["scalar", self._put(np.asarray(value), path)]
        if id(value) in self._seen:
            return ["ref", self._seen[id(value)]]
        if isinstance(value, _CONSTANT) or type(value).__name__ == "partial" or _is_mujoco(value, "MjModel"):
            return ["same", _kind(value)]
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        return self._composite(value, path)

    def _composite(self, value: Any, path: str) -> Node:
        if isinstance(value, np.ndarray):
            return ["array", self._put(value, path)]
        if type(value) is bytes:
            return ["bytes", self._put(np.frombuffer(value, np.uint8), path)]
        if type(value) in (list, tuple, deque, set, frozenset):
            items = [self.node(item, f"{path}[{i}]") for i, item in enumerate(value)]
            return [type(value).__name__, items, getattr(value, "maxlen", None)]
        if isinstance(value, dict):
            items = [[self.node(k, f"{path} key"), self.node(v, f"{path}[{k!r}]")] for k, v in value.items()]
            return ["dict", items, _kind(value)]
        if isinstance(value, np.random.Generator):
            return ["generator", type(value.bit_generator).__name__, self.node(value.bit_generator.state, path)]
        if isinstance(value, np.random.RandomState):
            return ["random_state", self.node(value.get_state(legacy=False), path)]
        if isinstance(value, random.Random):
            return ["random", self.node(value.getstate(), path)]
        if _is_mujoco(value, "MjData"):
            return ["mujoco", *self._mujoco(value, path)]
        if isinstance(value, Replayable):
            return ["replayable", _kind(value), self.node(value.replayable_state(), path)]
        if type(value).__flags__ & _HEAP_TYPE and (hasattr(value, "__dict__") or _slots(value)):
            names = _SPACE_STATE if isinstance(value, gym.Space) else None  # all else of a space is its definition
            attributes = {k: v for k, v in _attributes(value).items() if names is None or k in names}
            return ["object", _kind(value), {k: self.node(v, f"{path}.{k}") for k, v in attributes.items()}]
        raise UnsupportedStateError(f"{path} is a {_kind(value)}")

    def _put(self, array: Array, path: str) -> list[Any]:
        if array.dtype.hasobject:
            raise UnsupportedStateError(f"{path} is an array of objects")
        key = str(len(self.arrays))
        order: Literal["C", "F"] = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        # As bytes: safetensors has neither text nor complex numbers. The layout matters to the last bit of a sum.
        self.arrays[key] = np.frombuffer(array.tobytes(order), np.uint8).copy()
        return [key, array.dtype.str, list(array.shape), order, list(array.strides)]

    def _mujoco(self, data: Any, path: str) -> tuple[Any, Any]:
        import mujoco

        physics = np.empty(mujoco.mj_stateSize(data.model, _mujoco_spec()), np.float64)
        mujoco.mj_getState(data.model, data, physics, _mujoco_spec())
        derived = {name: np.array(array) for name, array in _mujoco_arrays(data).items()}
        return self._put(physics, path), {name: self._put(array, path) for name, array in derived.items()}


_SPACE_STATE = ("_np_random", "spaces")


class Restore:
    """Writes a captured state into an object built afresh."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays
        self._built: list[Any] = []  # by number, as in Capture
        self._claimed: set[int] = set()  # fresh objects that stand for one of the captured already
        self._alive: list[Any] = []

    def value(self, node: Node, fresh: Any = _MISSING, path: str = "state") -> Any:
        """What the node describes: `fresh` itself brought to that state where it can be, else something new."""
        kind = node[0]
        if kind == "v":
            return node[1]
        if kind == "enum":
            return type(fresh)[node[1]]
        if kind == "scalar":
            return self._get(node[1])[()]
        if kind == "ref":
            return self._built[node[1]]
        if kind == "same":
            if _kind(fresh) != node[1]:
                raise UnsupportedStateError(f"{path} was a {node[1]} and is a {_kind(fresh)} in a fresh one")
            return fresh
        number = len(self._built)
        self._built.append(None)
        self._alive.append(fresh)
        if id(fresh) in self._claimed:
            fresh = _MISSING  # shared in the fresh object, but not in the captured one
        self._claimed.add(id(fresh))
        builder: Callable[[Node, Any, int, str], Any] = getattr(self, f"_{kind}", self._sequence)
        self._built[number] = builder(node, fresh, number, path)
        return self._built[number]

    def _get(self, stored: list[Any]) -> Array:
        key, dtype, shape, order, _ = stored
        return np.frombuffer(self._arrays[key].tobytes(), np.dtype(dtype)).reshape(shape, order=order).copy(order)

    def _array(self, node: Node, fresh: Any, number: int, path: str) -> Any:
        array, strides = self._get(node[1]), tuple(node[1][4])
        if (
            isinstance(fresh, np.ndarray)
            and (fresh.shape, fresh.dtype, fresh.strides) == (array.shape, array.dtype, strides)
            and fresh.flags.writeable
        ):
            fresh[...] = array  # in place: it may be a view, and have views
            return fresh
        return array

    def _bytes(self, node: Node, fresh: Any, number: int, path: str) -> Any:
        return self._get(node[1]).tobytes()

    def _sequence(self, node: Node, fresh: Any, number: int, path: str) -> Any:
        kind, items, maxlen = node
        old = list(fresh) if isinstance(fresh, (list, tuple, deque)) and len(fresh) == len(items) else []
        old += [_MISSING] * (len(items) - len(old))
        if kind in ("tuple", "set", "frozenset"):
            made = [self.value(item, was, f"{path}[{i}]") for i, (item, was) in enumerate(zip(items, old, strict=True))]
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](made)
        result: Any = fresh if type(fresh).__name__ == kind else ([] if kind == "list" else deque(maxlen=maxlen))
        self._built[number] = result
        result.clear()
        for i, (item, was) in enumerate(zip(items, old, strict=True)):
            result.append(self.value(item, was, f"{path}[{i}]"))
        return result

    def _dict(self, node: Node, fresh: Any, number: int, path: str) -> Any:
        _, items, kind = node
        same = _kind(fresh) == kind
        if not same and kind != "builtins.dict":
            raise UnsupportedStateError(f"{path} was a {kind} and is a {_kind(fresh)} in a fresh one")
        old = dict(fresh) if same else {}
        result: dict[Any, Any] = fresh if same else {}
        self._built[number] = result
        result.clear()
        for key_node, value_node in items:
            key = self.value(key_node, _MISSING, f"{path} key")
            result[key] = self.value(value_node, old.get(key, _MISSING), f"{path}[{key!r}]")
        return result

    def _generator(self, node: Node, fresh: Any, number: int, path: str) -> Any:
        kind, state = node[1], self.value(node[2])
        if isinstance(fresh, np.random.Generator) and type(fresh.bit_generator).__name__ == kind:
            fresh.bit_generator.state = state
            return fresh
        if kind not in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
            raise UnsupportedStateError(f"{path} draws from a {kind}")
        bits = getattr(np.random, kind)()
        bits.state = state
        return np.random.Generator(bits)

    def _random_state(self, node: Node, fresh: Any, number: int, path: str) -> Any:
        result = fresh if isinstance(fresh, np.random.RandomState) else np.random.RandomState()
        result.set_state(self.value(node[1]))
        return result

    def _random(self, node: Node, fresh: Any, number: int, path: str) -> Any:
        result = fresh if isinstance(fresh, random.Random) else random.Random()
        result.setstate(self.value(node[1]))
        return result

    def _mujoco(self, node: Node, fresh: Any, number: int, path: str) -> Any:
        import mujoco

        if not _is_mujoco(fresh, "MjData"):
            raise UnsupportedStateError(f"{path} holds no MjData in a fresh one")
        mujoco.mj_setState(fresh.model, fresh, self._get(node[1]), _mujoco_spec())
        mujoco.mj_forward(fresh.model, fresh)
        # What a step leaves behind beside the physics is of the moment before it; envs show some of it.
        for name, array in _mujoco_arrays(fresh).items():
            saved = self._get(node[2][name])
            if saved.shape == array.shape:
                array[...] = saved
        return fresh

    def _replayable(self, node: Node, fresh: Any, number: int, path: str) -> Any:
        if _kind(fresh) != node[1] or not isinstance(fresh, Replayable):
            raise UnsupportedStateError(f"{path} was a {node[1]} and is a {_kind(fresh)} in a fresh one")
        self._built[number] = fresh
        fresh.replay(self.value(node[2], _MISSING, path))
        return fresh

    def _object(self, node: Node, fresh: Any, number: int, path: str) -> Any:
        _, kind, attributes = node
        kind = _placeless(kind)
        if _kind(fresh) != kind:
            raise UnsupportedStateError(f"{path} was a {kind} and is a {_kind(fresh)} in a fresh one")
        self._built[number] = fresh
        old = _attributes(fresh)
        if kind.startswith("rollcall.") and not isinstance(fresh, gym.Env) and old.keys() != attributes.keys():
            raise UnsupportedStateError(f"{path} is a {kind} of another release")
        for name, item in attributes.items():
            was = old.get(name, _MISSING)
            value = self.value(item, was, f"{path}.{name}")
            if value is not was:
                object.__setattr__(fresh, name, value)
        if not isinstance(fresh, gym.Space):
            for name in old.keys() - attributes.keys():
                object.__delattr__(fresh, name)
        return fresh


def _kind(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    module = getattr(type(value), "__module__", "builtins")  # SWIG's objects have none
    return _placeless(f"{module}.{type(value).__qualname__}")


def _placeless(kind: str) -> str:
    """A class of ours without its file, which differs from release to release."""
    return f"rollcall.{kind.rpartition('.')[2]}" if kind.startswith("rollcall.") else kind


def _slots(value: Any) -> list[str]:
    names: list[str] = []
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _attributes(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    for name in _slots(value):
        if hasattr(value, name):
            found[name] = getattr(value, name)
    return found


def _is_mujoco(value: Any, name: str) -> bool:
    return type(value).__name__ == name and type(value).__module__.startswith("mujoco.") and "mujoco" in sys.modules


def _mujoco_spec() -> int:
    import mujoco

    return int(mujoco.mjtState.mjSTATE_INTEGRATION)


def _mujoco_arrays(data: Any) -> dict[str, Array]:
    """Views of everything that MjData shows as an array."""
    found = {name: getattr(data, name) for name in dir(data) if not name.startswith("_")}
    return {
        name: value for name, value in found.items() if isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    }
