"""What is done to every array of a record, whatever its fields are: stacked, padded, selected, moved to a device. So a
record lists its fields once. Arrays are numpy's or torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

Array = NDArray[Any]
Record = TypeVar("Record")


def map_arrays(record: Record, function: Callable[[Any], object]) -> Record:
    """The record with `function` of each array in place of it. Fields may be None, mappings, or records themselves."""
    return cast(Record, _mapped(record, function))


def join_arrays(records: Sequence[Record], function: Callable[[list[Any]], object]) -> Record:
    """One record, of whose arrays each is `function` of those that the records have under its name.

    Raises:
      ValueError: naming a field that not all of them have.
    """
    return cast(Record, _joined("", list(records), function))


def named_arrays(record: object) -> Iterator[tuple[str, Array]]:
    """Every array with a name, in the order of the fields; of an inner record's by its own names alone."""
    assert is_dataclass(record)
    for item in fields(record):
        value = getattr(record, item.name)
        if isinstance(value, np.ndarray):
            yield item.name, value
        elif isinstance(value, Mapping):
            for name in sorted(value):
                if isinstance(value[name], np.ndarray):
                    yield f"{item.name}.{name}", value[name]
        elif is_dataclass(value):
            yield from named_arrays(value)


def digest_of(arrays: Iterator[tuple[str, Array]]) -> str:
    """xxh3-128 (hex) over names, dtypes, shapes and bytes."""
    hasher = xxhash.xxh3_128()
    for name, array in arrays:
        hasher.update(f"{name}|{array.dtype.str}|{array.shape}".encode())
        hasher.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return hasher.hexdigest()


def _mapped(value: object, function: Callable[[Any], object]) -> object:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: _mapped(inner, function) for name, inner in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{item.name: _mapped(getattr(value, item.name), function) for item in fields(value)})
    return function(value)


def _joined(name: str, values: list[Any], function: Callable[[list[Any]], object]) -> object:
    first = values[0]
    if any((value is None) != (first is None) for value in values):
        raise ValueError(f"of {len(values)} records, some have {name} and others have not")
    if first is None:
        return None
    if isinstance(first, Mapping):
        if any(list(value) != list(first) for value in values):
            names = next(list(value) for value in values if list(value) != list(first))
            raise ValueError(f"{name} of one record are {list(first)}, of another {names}")
        return {key: _joined(f"{name}.{key}", [value[key] for value in values], function) for key in first}
    if is_dataclass(first) and not isinstance(first, type):
        names = [item.name for item in fields(first)]
        return type(first)(**{key: _joined(key, [getattr(v, key) for v in values], function) for key in names})
    return function(values)
