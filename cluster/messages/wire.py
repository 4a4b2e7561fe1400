"""Records as bytes, for whoever is not of one program run: replay on disk, recorded trajectories, actors elsewhere.

A record's bytes are a safetensors file in memory: its arrays are the tensors, and the rest of it is JSON in the file's
metadata, by the names of the record's fields, with a tensor's name where an array stands. Nothing is pickled, so bytes
of a stranger can give a wrong record, and do nothing else. A field with a default may be missing: it is younger than
the bytes.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rollcall.cluster.errors import WireError
from rollcall.cluster.messages.arrays import Array

WIRE_VERSION = 1
MAX_HEADER_BYTES = 64 << 20  # names and shapes of the tensors, and all that is not an array
MAX_BYTES = 16 << 30

_JSON_TYPES: dict[object, tuple[type, ...]] = {int: (int,), float: (float, int), str: (str,), bool: (bool,)}

Record = TypeVar("Record")


def to_bytes(record: object) -> bytes:
    """Of any record of cluster/messages.

    Raises:
      ValueError: for an array of a dtype that has no bytes of its own (objects, texts), or a record beyond MAX_BYTES.
    """
    arrays: dict[str, Array] = {}
    tree = _plain(record, "", arrays)
    size = sum(array.nbytes for array in arrays.values())
    text = json.dumps(tree)
    if size > MAX_BYTES or len(text) > MAX_HEADER_BYTES // 2:
        raise ValueError(f"{type(record).__name__} of {size} bytes and {len(text)} of JSON: too large for one message")
    metadata = {"rollcall_version": str(WIRE_VERSION), "record": type(record).__name__, "fields": text}
    return save(arrays, metadata)


def from_bytes(data: bytes, *kinds: type[Record]) -> Record:
    """The record that `to_bytes` was given, of one of these kinds.

    Raises:
      WireError: saying what is wrong with the bytes. They raise nothing else.
    """
    metadata = _metadata(data)
    version, name = metadata.get("rollcall_version"), metadata.get("record")
    if version != str(WIRE_VERSION):
        raise WireError(f"of version {str(version)[:20]!r}: this version of Rollcall reads {WIRE_VERSION}")
    kind = next((kind for kind in kinds if kind.__name__ == name), None)
    if kind is None:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise WireError(f"a {str(name)[:40]!r}, where a {wanted} was expected")
    arrays = _arrays(data)
    try:
        tree = json.loads(metadata.get("fields", ""))
    except (ValueError, RecursionError) as error:
        raise WireError(f"its fields are no JSON: {_short(error)}") from None
    record = cast(Record, _built(tree, kind, kind.__name__, arrays))
    if arrays:
        raise WireError(f"a tensor that belongs nowhere: {next(iter(arrays))[:80]!r}")
    return record


def _metadata(data: bytes) -> dict[str, str]:
    """Of a safetensors file: 8 bytes of length, then a header in JSON, which has it."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or len(data) > MAX_BYTES + MAX_HEADER_BYTES:
        raise WireError(f"{len(data)} bytes: not a record")
    if size > MAX_HEADER_BYTES:
        raise WireError(f"a header of {size} bytes; at most {MAX_HEADER_BYTES} are read")
    if len(data) < 8 + size:
        raise WireError(f"truncated: {len(data)} bytes, and the header alone has {size}")
    try:
        found = json.loads(data[8 : 8 + size]).get("__metadata__")
    except (ValueError, AttributeError, RecursionError) as error:
        raise WireError(f"its header is no safetensors header: {_short(error)}") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise WireError("its header has no metadata: not a record of Rollcall's")
    return found


def _arrays(data: bytes) -> dict[str, Array]:
    try:
        arrays: dict[str, Array] = load(data)
    except KeyError as error:
        raise WireError(f"a tensor of dtype {_short(error)}, which numpy has not") from None
    except (SafetensorError, ValueError, OverflowError, MemoryError) as error:
        raise WireError(f"truncated or damaged: {_short(error)}") from None
    return arrays


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _plain(value: object, path: str, arrays: dict[str, Array]) -> object:
    """What JSON can say of a value; arrays are put aside, and called by where they stand."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise ValueError(f"{path} is an array of {value.dtype}: only numbers and flags have bytes of their own")
        arrays[path] = np.asarray(value, value.dtype.newbyteorder("="), order="C")
        return path
    if isinstance(value, Mapping):
        return {name: _plain(inner, f"{path}.{name}", arrays) for name, inner in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        prefix = f"{path}." if path else ""
        names = [item.name for item in fields(value)]
        return {name: _plain(getattr(value, name), prefix + name, arrays) for name in names}
    if isinstance(value, tuple):
        return [_plain(inner, f"{path}.{number}", arrays) for number, inner in enumerate(value)]
    return str(value) if isinstance(value, Path) else value


def _built(tree: object, hint: object, path: str, arrays: dict[str, Array]) -> object:
    """A value of the type that a field's annotation says, out of what `_plain` made of it."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(tree, inner, path, arrays)
    if isinstance(hint, TypeVar) or origin is np.ndarray:
        if not isinstance(tree, str) or tree not in arrays:
            raise WireError(f"{path}: no tensor stands for it")
        return arrays.pop(tree)
    if is_dataclass(origin):
        return _built_record(tree, cast(type, origin), path, arrays)
    if origin is Mapping and isinstance(tree, dict):
        return {name: _built(value, inner[1], f"{path}.{name}", arrays) for name, value in tree.items()}
    if origin is tuple and isinstance(tree, list):
        hints = [inner[0]] * len(tree) if inner[-1] is Ellipsis else list(inner)
        if len(hints) == len(tree):
            pairs = enumerate(zip(tree, hints, strict=True))
            return tuple(_built(value, own, f"{path}.{number}", arrays) for number, (value, own) in pairs)
    elif origin is Literal and tree in inner:
        return tree
    elif origin is Path and isinstance(tree, str):
        return Path(tree)
    elif type(tree) in _JSON_TYPES.get(origin, ()):
        return tree
    raise WireError(f"{path}: a JSON {type(tree).__name__}, where {getattr(hint, '__name__', hint)} was expected")


def _one_of(tree: object, hints: tuple[object, ...], path: str, arrays: dict[str, Array]) -> object:
    """None, or the other; of several records, the one with these fields."""
    if tree is None and type(None) in hints:
        return None
    others = [hint for hint in hints if hint is not type(None)]
    if isinstance(tree, dict):
        others = [hint for hint in others if not is_dataclass(hint) or tree.keys() <= _hints(cast(type, hint)).keys()]
    if not others:
        raise WireError(f"{path}: fields of no record that may stand here")
    return _built(tree, others[0], path, arrays)


def _built_record(tree: object, kind: type, path: str, arrays: dict[str, Array]) -> object:
    hints = _hints(kind)
    if not isinstance(tree, dict):
        raise WireError(f"{path}: no fields of a {kind.__name__}")
    if foreign := tree.keys() - hints.keys():
        raise WireError(f"{path}: has {min(foreign)[:40]!r}, which a {kind.__name__} has not")
    for item in fields(kind):
        if item.name not in tree and item.default is MISSING and item.default_factory is MISSING:
            raise WireError(f"{path}: has no {item.name}")
    values = {name: _built(value, hints[name], f"{path}.{name}", arrays) for name, value in tree.items()}
    return kind(**values)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
