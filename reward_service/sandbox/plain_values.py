"""Python values as JSON and back, by value and by exact type: what crosses between tests and the code they test. Runs
on both sides of the sandbox, from the standard library alone; what it decodes may come from code that nobody trusts."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import importlib
import math
import types
from collections.abc import Callable
from typing import Any

Encode = Callable[[Any], dict[str, Any]]  # how to write what is not plain
Decode = Callable[[dict[str, Any]], Any]
_TAG = "t"
_SMALL = 1 << 53
_PLAIN_TYPES = (bool, bytes, complex, dict, float, frozenset, int, list, object, set, str, tuple, type)
_VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_WRITTEN_AS_TEXT = (
    fractions.Fraction,
    decimal.Decimal,
    datetime.date,
    datetime.datetime,
    datetime.time,
)
_SELDOM = {"PosixPath": "pathlib", "PurePosixPath": "pathlib", "UUID": "uuid"}  # as text, too; slow to import


class CannotCross(TypeError):
    """A value that is neither plain nor may be spoken of from the other side."""


def encode(value: Any, other: Encode | None = None) -> Any:
    """Raises CannotCross: for a value that is not plain, without `other`."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else {_TAG: "int", "v": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {_TAG: "float", "v": repr(value)}
    if kind is list:
        return [encode(element, other) for element in value]
    if kind in (tuple, set, frozenset, *_VIEWS[:2]):
        return {_TAG: kind.__name__, "v": [encode(element, other) for element in value]}
    if kind is collections.deque:
        return {_TAG: "deque", "v": [encode(element, other) for element in value], "most": value.maxlen}
    if kind in (dict, collections.OrderedDict, collections.Counter, collections.defaultdict, _VIEWS[2]):
        pairs = value if kind is _VIEWS[2] else value.items()
        written = {_TAG: kind.__name__, "v": [[encode(key, other), encode(element, other)] for key, element in pairs]}
        factory = value.default_factory if kind is collections.defaultdict else None
        return written | ({"factory": factory.__name__} if factory in _PLAIN_TYPES else {})
    if kind in (bytes, bytearray):
        return {_TAG: kind.__name__, "v": value.hex()}
    if kind is complex:
        return {_TAG: "complex", "v": [repr(value.real), repr(value.imag)]}
    if kind in (range, slice):
        return {_TAG: kind.__name__, "v": [encode(number, other) for number in (value.start, value.stop, value.step)]}
    if kind in _WRITTEN_AS_TEXT or _SELDOM.get(kind.__name__) == kind.__module__:
        return {_TAG: kind.__name__, "v": value.isoformat() if hasattr(value, "isoformat") else str(value)}
    if kind is datetime.timedelta:
        return {_TAG: "timedelta", "v": [value.days, value.seconds, value.microseconds]}
    if value is NotImplemented or value is Ellipsis:
        return {_TAG: "constant", "v": str(value)}
    if kind is type and value in _PLAIN_TYPES:
        return {_TAG: "type", "v": value.__name__}
    if other is None:
        raise CannotCross(f"a {kind.__name__} is no plain value")
    return other(value)


def base_value(value: object) -> Any:
    """Of an instance of a subclass of a plain type (a namedtuple, an IntEnum, a str of one's own), and of the standard
    library's copies of plain types: the plain value in it; else the value itself."""
    base: Any
    for base in (bool, int, float, str, bytes, tuple, list, dict, set, frozenset):
        if isinstance(value, base) and type(value) is not base:
            if base in (tuple, list, set, frozenset):
                return base(base.__iter__(value))
            if base is dict:
                return dict(dict.items(value))
            return base.__getnewargs__(value)[0]
    if isinstance(value, (collections.UserDict, collections.UserList, collections.UserString)):
        return value.data
    if isinstance(value, (collections.ChainMap, types.MappingProxyType)):
        return dict(value)
    return value


def decode(encoded: object, other: Decode | None = None) -> Any:
    """Raises ValueError, TypeError or KeyError for what `encode` never writes."""
    if isinstance(encoded, list):
        return [decode(element, other) for element in encoded]
    if not isinstance(encoded, dict):
        return encoded
    kind = encoded[_TAG]
    value: Any = encoded.get("v")
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decode(element, other) for element in value)
    if kind in _MAPPINGS:
        return _MAPPINGS[kind]({decode(key, other): decode(element, other) for key, element in value})
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if kind in _SELDOM:
        return getattr(importlib.import_module(_SELDOM[kind]), kind)(value)
    if kind == "deque":
        return collections.deque((decode(element, other) for element in value), encoded.get("most"))
    if kind == "defaultdict":
        factory = _NAMED_TYPES.get(encoded.get("factory", ""))
        return collections.defaultdict(factory, {decode(key, other): decode(each, other) for key, each in value})
    if other is None:
        raise ValueError(f"{kind!r} is no plain value")
    return other(encoded)


_NAMED_TYPES: dict[str, Any] = {kind.__name__: kind for kind in _PLAIN_TYPES}
_SEQUENCES: dict[str, Callable[..., Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict_keys": lambda elements: dict.fromkeys(elements).keys(),
    "dict_values": lambda elements: dict(enumerate(elements)).values(),
}
_MAPPINGS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "Counter": collections.Counter,
    "dict_items": lambda pairs: pairs.items(),
}
_SCALARS: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(float(parts[0]), float(parts[1])),
    "range": lambda parts: range(*(decode(part) for part in parts)),
    "slice": lambda parts: slice(*(decode(part) for part in parts)),
    "Fraction": fractions.Fraction,
    "Decimal": decimal.Decimal,
    "date": datetime.date.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda parts: datetime.timedelta(*parts),
    "constant": {"NotImplemented": NotImplemented, "Ellipsis": Ellipsis}.__getitem__,
    "type": _NAMED_TYPES.__getitem__,
}
_OF_PLAIN_VALUES = {
    name: getattr(kind, name)
    for kind in (
        *(str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset, range),
        *(collections.deque, collections.Counter, collections.OrderedDict, *_WRITTEN_AS_TEXT, datetime.timedelta),
    )
    for name in dir(kind)
}
PLAIN_ATTRIBUTES = frozenset(_OF_PLAIN_VALUES)
PLAIN_METHODS = frozenset(name for name, found in _OF_PLAIN_VALUES.items() if callable(found))
