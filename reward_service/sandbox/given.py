"""What both ends have of the preamble: its classes and functions, each end its own copy. An instance of such a class
crosses attribute by attribute, and is one object at each end: what a call changes in it, or in those that it leads to,
comes back with the answer. So the methods of the tests' own classes run at the tests' end. Standard library alone."""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Mapping
from typing import Any

from rollcall.reward_service.sandbox.plain_values import Decode, Encode, decode, encode


def fresh_module(name: str, file: str) -> types.ModuleType:
    """For code to run in, as if it were a program."""
    sys.argv = [file]
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module


class Given:
    """One end's copy of what the preamble defines, and the instances that have crossed."""

    def __init__(self, module: str, names: Mapping[str, Any], side: str) -> None:
        """
        Args:
          names: of the preamble, before anything else has run.
          side: a letter, another one at each end.
        """
        self.names: dict[str, Any] = {
            name: value
            for name, value in names.items()
            if isinstance(value, (type, types.FunctionType)) and value.__module__ == module
        }
        self.classes: dict[str, type] = {name: value for name, value in self.names.items() if isinstance(value, type)}
        self._known = {id(value): name for name, value in self.names.items()}
        self._side = side
        self._objects: dict[str, Any] = {}
        self._keys: dict[int, str] = {}
        self._to_write: list[str] = []
        self._written: set[str] = set()

    def class_name(self, kind: type) -> str | None:
        return self._known.get(id(kind))

    def claimed(self, value: object) -> str | None:
        """The nearest class of the preamble that it is an instance of."""
        return next((name for kind in type(value).__mro__ if (name := self.class_name(kind))), None)

    def encode(self, value: Any, other: Encode) -> dict[str, Any] | None:
        """None for what is not of the preamble."""
        if (own := self._known.get(id(value))) is not None:
            return {"t": "given", "v": own}
        kind = type(value)
        name = self.class_name(kind)
        if name is None:
            return None
        if isinstance(value, enum.Enum):
            return {"t": "member", "v": [name, value.name]}
        if issubclass(kind, tuple):
            return {"t": "struct", "v": [name, [encode(element, other) for element in tuple.__iter__(value)]]}
        if not _is_record(kind):
            return None
        key = self._keys.get(id(value))
        if key is None:
            key = self._keys[id(value)] = f"{self._side}{len(self._objects)}"
            self._objects[key] = value
        if key not in self._written:
            self._written.add(key)
            self._to_write.append(key)
        return {"t": "record", "v": key}

    def take_records(self, other: Encode) -> dict[str, Any]:
        """All instances that the message under way speaks of, and those that they lead to. No recursion: a list of a
        thousand nodes is nothing unusual."""
        records: dict[str, Any] = {}
        while self._to_write:
            key = self._to_write.pop()
            value = self._objects[key]
            state = {name: encode(found, other) for name, found in _state(value).items()}
            records[key] = {"class": self.class_name(type(value)), "state": state}
        self._written.clear()
        return records

    def read_records(self, records: Mapping[str, Any], other: Decode) -> None:
        """Raises ValueError: of an attribute that would take a method's place."""
        for key, record in records.items():
            if key not in self._objects:
                value: Any = object.__new__(self.classes[record["class"]])
                self._objects[str(key)] = value
                self._keys[id(value)] = str(key)
        for key, record in records.items():
            value = self._objects[key]
            kind = type(value)
            for name in _state(value).keys() - record["state"].keys():
                object.__delattr__(value, name)
            for name, encoded in record["state"].items():
                if not _is_data(kind, name):
                    raise ValueError(f"{kind.__name__}.{name} is no attribute that an instance may set")
                object.__setattr__(value, name, decode(encoded, other))

    def decode(self, encoded: dict[str, Any], other: Decode) -> Any:
        """Raises KeyError or ValueError: for what is not there."""
        kind, what = encoded["t"], encoded["v"]
        if kind == "record":
            return self._objects[what]
        if kind == "given":
            return self.names[what]
        if kind == "member":
            return self.names[what[0]].__members__[what[1]]
        if kind == "struct":
            return tuple.__new__(self.classes[what[0]], [decode(element, other) for element in what[1]])
        raise ValueError(f"{kind!r} is not of the preamble")


def _is_record(kind: type) -> bool:
    """Whether an instance is its attributes and nothing else."""
    try:
        object.__new__(kind)
    except TypeError:  # of a list's, an exception's, an abstract class
        return False
    return True


def _slots(kind: type) -> list[str]:
    slots = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    return [name for names in slots for name in ((names,) if isinstance(names, str) else names)]


def _state(value: object) -> dict[str, Any]:
    state = dict(getattr(value, "__dict__", {}))
    for name in _slots(type(value)):
        if not name.startswith("__") and hasattr(value, name):
            state[name] = getattr(value, name)
    return state


def _is_data(kind: type, name: str) -> bool:
    if name.startswith("__"):
        return False
    found = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    if isinstance(found, types.MemberDescriptorType):
        return True
    return not callable(found) and not hasattr(type(found), "__get__")
