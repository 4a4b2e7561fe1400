"""One file of columns on the disk: written once, whole, with a checksum, and never changed. Knows bytes and arrays;
must never know what a column means.

    rollcall segment 1\\n {header}\\n column column ... checksum

The header is a line of JSON: what the writer says (`meta`), and of each column its name, dtype, form and size. A column
of integers is stored as differences between neighbours, in the narrowest type for them, deflated where it helps."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash
from pydantic import JsonValue

from rollcall.cluster.errors import BooksDamaged
from rollcall.cluster.messages.arrays import Array

_MAGIC = b"rollcall segment 1\n"
_SUM_BYTES = 16
_NARROW = (np.int8, np.int16, np.int32)


def write_segment(path: Path, meta: Mapping[str, JsonValue], columns: Mapping[str, Array]) -> str:
    """Aside first, then in one move, on the disk when it returns. Returns its checksum."""
    described: list[JsonValue] = []
    parts: list[bytes] = []
    for name, array in columns.items():
        form, stored = _stored(array)
        plain = stored.tobytes()
        packed = zlib.compress(plain, 1)
        deflated = len(packed) < len(plain)
        parts.append(packed if deflated else plain)
        rows = list(array.shape)
        described.append([name, str(array.dtype), str(stored.dtype), form, rows, deflated, len(parts[-1])])
    header = json.dumps({"meta": dict(meta), "columns": described}, separators=(",", ":")).encode()
    content = b"".join([_MAGIC, header, b"\n", *parts])
    digest = xxhash.xxh3_128(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(content + digest.digest())
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_directory(path.parent)
    return digest.hexdigest()


def read_segment(path: Path) -> tuple[dict[str, JsonValue], dict[str, Array]]:
    """What was said of it, and its columns.

    Raises:
      BooksDamaged: with the file's name, and what is wrong with it.
    """
    content = _whole(path)
    head, _, _ = content[len(_MAGIC) :].partition(b"\n")
    try:
        header = json.loads(head)
        at = len(_MAGIC) + len(head) + 1
        columns: dict[str, Array] = {}
        for name, dtype, stored, form, shape, deflated, size in header["columns"]:
            part = content[at : at + size]
            plain = np.frombuffer(zlib.decompress(part) if deflated else part, stored)
            whole = np.cumsum(plain, dtype=dtype) if form == "differences" else plain.astype(dtype)
            columns[name], at = whole.reshape(shape), at + size
        return header["meta"], columns
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise BooksDamaged(f"{path}: its checksum fits, but it cannot be read: {error}") from None


def read_meta(path: Path) -> dict[str, JsonValue]:
    """What was said of it; the columns are not looked at, nor is the checksum.

    Raises:
      BooksDamaged: when it is not there, or has no header.
    """
    try:
        with path.open("rb") as file:
            if file.readline() != _MAGIC:
                raise ValueError("not a segment")
            meta = json.loads(file.readline())["meta"]
            assert isinstance(meta, dict)
            return meta
    except FileNotFoundError:
        raise BooksDamaged(f"{path}: missing") from None
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise BooksDamaged(f"{path}: damaged: it has no header of a segment") from None


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whole(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BooksDamaged(f"{path}: missing") from None
    except OSError as error:
        raise BooksDamaged(f"{path}: cannot be read: {error.strerror or error}") from None
    if not content.startswith(_MAGIC):
        raise BooksDamaged(f"{path}: damaged: it does not begin as a segment of this release")
    if xxhash.xxh3_128(content[:-_SUM_BYTES]).digest() != content[-_SUM_BYTES:]:
        raise BooksDamaged(f"{path}: damaged: its checksum does not fit")
    return content[:-_SUM_BYTES]


def _stored(array: Array) -> tuple[str, Array]:
    if array.dtype != np.int64 or array.ndim != 1:
        return "plain", np.ascontiguousarray(array)
    steps = np.diff(array, prepend=0)
    lowest, highest = (int(steps.min()), int(steps.max())) if len(steps) else (0, 0)
    for narrow in _NARROW:
        if np.iinfo(narrow).min <= lowest and highest <= np.iinfo(narrow).max:
            return "differences", steps.astype(narrow)
    return "differences", steps
