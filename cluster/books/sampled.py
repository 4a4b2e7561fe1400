"""What a learner that keeps its experience says of each of its steps: which attempts it was drawn from. A line a step,
beside the consumption log, which says when each attempt came in. It must never read the ledger."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from rollcall.cluster.books.consumption_line import CHANGED, FOREIGN, MOVED, sum_of
from rollcall.cluster.books.log_file import alone, cut_torn_line, last_line
from rollcall.cluster.files import append_whole, once_there_is_room
from rollcall.cluster.messages.arrays import Array

SAMPLED_NAME = "sampled.jsonl"  # in <run>/logs/
FIRST = 1  # what nearly every attempt's number is: only others are written


@dataclass(frozen=True)
class Sampled:
    """One learner step. Row i is an attempt that transitions were drawn from, each once, in order."""

    step: int
    epoch: int
    num_drawn: int  # transitions
    tickets: Array  # int64 [N]
    attempts: Array  # int64 [N]

    def line(self, after: str) -> str:
        """With the checksum of the line before and its own, as the consumption log has them."""
        content = {
            "step": self.step,
            "epoch": self.epoch,
            "num_drawn": self.num_drawn,
            "attempts": _packed(self.tickets, self.attempts),
            "after": after,
        }
        text = json.dumps(content)
        return f'{text[:-1]}, "sum": "{xxhash.xxh3_64_hexdigest(text.encode())}"}}\n'


@dataclass(frozen=True, slots=True)
class Misread:
    """A line that is not as it was written."""

    number: int
    problem: str


class SampledLog:
    """Appends to a log, going on where a killed learner left off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._size = -1  # of the file after our last append
        self._after = ""

    def append(self, sampled: Sampled) -> None:
        once_there_is_room(lambda: self._append(sampled), self._path.parent)

    def _append(self, sampled: Sampled) -> None:
        with alone(self._path) as file:
            if os.fstat(file.fileno()).st_size != self._size:  # whatever somebody else has left
                cut_torn_line(self._path)
                line = last_line(self._path)
                self._after = sum_of(line) if line else ""
            line = sampled.line(self._after)
            append_whole(file.fileno(), line.encode())
            self._after = sum_of(line)
            self._size = os.fstat(file.fileno()).st_size


def read_sampled(path: Path) -> Iterator[tuple[int, Sampled] | Misread]:
    """Lines with their numbers, from 1 on, as they are read; a last one without an end is that of a killed learner."""
    after = ""
    with path.open(errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            found, said_after = _parsed(line)
            if found is None:
                yield Misread(number, FOREIGN)
                after = "unknown"
                continue
            if found.line(said_after) != line:
                yield Misread(number, CHANGED)
            elif said_after != after and after != "unknown":
                yield Misread(number, MOVED)
            yield number, found
            after = sum_of(line)


def _parsed(line: str) -> tuple[Sampled | None, str]:
    try:
        record = json.loads(line)
        tickets, attempts = _unpacked(record["attempts"])
        numbers = (record["step"], record["epoch"], record["num_drawn"])
        after = record["after"]
    except (ValueError, KeyError, TypeError, IndexError, zlib.error):
        return None, ""
    if not all(type(number) is int for number in numbers) or not isinstance(after, str):
        return None, ""
    return Sampled(*numbers, tickets, attempts), after


def _packed(tickets: Array, attempts: Array) -> str:
    """How far each ticket is from the one before it, then (place, number) of attempts that are not the first."""
    others = np.flatnonzero(attempts != FIRST)
    counts = np.array([len(tickets), len(others)])
    numbers = np.concatenate([counts, np.diff(tickets, prepend=0), others, attempts[others]])
    return base64.b85encode(zlib.compress(_bytes_of(numbers))).decode()


def _unpacked(text: str) -> tuple[Array, Array]:
    numbers = _numbers_of(zlib.decompress(base64.b85decode(text)))
    size, num_others = int(numbers[0]), int(numbers[1])
    deltas, others, values = np.split(numbers[2:], [size, size + num_others])
    if len(values) != num_others or len(others) != num_others:
        raise ValueError("not as many numbers as it says")
    attempts = np.full(size, FIRST, np.int64)
    attempts[others] = values
    return deltas.cumsum(), attempts


def _bytes_of(numbers: Array) -> bytes:
    """All lowest bytes first, then the next: of small numbers the rest is zeros, which deflate to nothing."""
    planes: Array = numbers.astype("<i8").view(np.uint8).reshape(-1, 8).T
    return planes.tobytes()


def _numbers_of(content: bytes) -> Array:
    """Raises ValueError where they are no whole numbers."""
    planes = np.frombuffer(content, np.uint8).reshape(8, -1)
    numbers: Array = np.ascontiguousarray(planes.T).view("<i8").ravel()
    return numbers
