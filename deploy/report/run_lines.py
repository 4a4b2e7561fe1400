"""Reads and cuts the files that grow by a line a learner step: metrics.jsonl and its like. A run may last for weeks, so
none of them is held in memory as a whole, but by `read_jsonl`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from rollcall.cluster.files import once_there_is_room

MOST_RECORDS = 10_000  # that a page is made of: it shows some hundred points
_BLOCK_BYTES = 1 << 20

_T = TypeVar("_T")


def iter_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line. A last line cut short by a kill is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            record = _parsed(line)
            if record is not None:
                yield record


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All of them at once."""
    return list(iter_jsonl(path))


def last_record(path: Path) -> dict[str, Any] | None:
    """The newest whole line; the others are not read."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        return next((record for _, line in _from_the_end(file) if (record := _parsed(line)) is not None), None)


def thinned(items: Iterable[_T], most: int = MOST_RECORDS) -> list[_T]:
    """All of them, or where there are more than twice `most`, each second, fourth, ... one: evenly, and never more
    than that in memory. The last one is there in any case."""
    kept: list[tuple[int, _T]] = []
    newest: list[tuple[int, _T]] = []
    every = 1
    for numbered in enumerate(items):
        newest = [numbered]
        if numbered[0] % every == 0:
            kept.append(numbered)
            if len(kept) > 2 * most:
                kept, every = kept[::2], 2 * every
    ends_there = bool(kept) and kept[-1][0] == newest[0][0]
    return [item for _, item in (kept if ends_there else [*kept, *newest])]


def truncate_after(path: Path, step: int) -> int:
    """Drops the lines of steps later than `step`, and a last line that a killed driver left half-written; returns how
    many were dropped. Lines are in the order of their steps: it looks from the end. What is kept is not touched, so a
    kill cannot lose it."""
    if not path.exists():
        return 0
    dropped = 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        for at, line in _from_the_end(file):
            if line.endswith(b"\n") and _step_of(line) <= step:
                break
            end, dropped = at, dropped + 1
    if dropped:
        once_there_is_room(lambda: os.truncate(path, end), path.parent)
    return dropped


def _from_the_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line, the last one first."""
    end, rest = file.seek(0, os.SEEK_END), b""
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        lines = (file.read(end - start) + rest).splitlines(keepends=True)
        rest = lines.pop(0) if start else b""  # its beginning is in the block before
        at = start + len(rest) + sum(map(len, lines))
        for line in reversed(lines):
            at -= len(line)
            yield at, line
        end = start


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that says nothing is of no step that is kept


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
