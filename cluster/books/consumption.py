"""The consumption log: what the learner says it consumed, a line per trajectory, kept apart from the ledger so that an
audit can hold one against the other. It must never read the ledger, nor be written by the driver."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

import xxhash

from rollcall.cluster.messages.attempt import Header

LOG_NAME = "consumption.jsonl"  # in <run>/logs/
_TAIL_BYTES = 1 << 16  # enough to find the last line in


class Consumable(Protocol):
    """What the log needs to know of a trajectory."""

    @property
    def header(self) -> Header: ...
    @property
    def min_policy_version(self) -> int: ...
    @property
    def reward_model_version(self) -> str: ...
    def digest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Consumed:
    """One trajectory that went into a learner step."""

    step: int
    epoch: int
    ticket_id: int
    attempt: int
    min_version: int
    digest: str
    reward_version: str = ""  # of the model that scored it; empty: the env or task itself

    def line(self, after: str) -> str:
        """With the checksum of the line before (`after`) and its own (`sum`): a line that was changed, removed, doubled
        or moved shows."""
        content = json.dumps({**asdict(self), "after": after})
        return f'{content[:-1]}, "sum": "{xxhash.xxh3_64_hexdigest(content.encode())}"}}\n'


@dataclass(frozen=True, slots=True)
class LogReading:
    """A log as it was found. `problems` are (line number, what is wrong with it); lines count from 1."""

    lines: tuple[tuple[int, Consumed], ...]
    problems: tuple[tuple[int, str], ...]
    torn: bool  # the last line has no end: its writer was killed


class ConsumptionLog:
    """Appends to a log, going on where a killed learner left off: a torn last line is cut away first.

    A learner whose driver was killed may finish its step beside its successor. Each append has the file to itself and
    follows whatever stands there by then, so both are told, and the epoch tells them apart.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._size = -1  # of the file after our last append
        self._after = ""
        self._write([])

    def append(self, step: int, epoch: int, trajectories: Iterable[Consumable]) -> None:
        """One write for the whole step, so that a kill tears at most its end."""
        self._write(
            [
                Consumed(
                    step,
                    epoch,
                    item.header.ticket_id,
                    item.header.attempt,
                    item.min_policy_version,
                    item.digest(),
                    item.reward_model_version,
                )
                for item in trajectories
            ]
        )

    def _write(self, items: Iterable[Consumed]) -> None:
        with self._path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size != self._size:
                _cut_torn_line(self._path)
                self._after = _last_sum(self._path)
            text = ""
            for item in items:
                line = item.line(self._after)
                text, self._after = text + line, _sum_of(line)
            file.write(text.encode())
            self._size = os.fstat(file.fileno()).st_size


def read_log(path: Path) -> LogReading:
    """Every line of a log, and what is wrong with which. A log that is missing is empty."""
    text = path.read_text(errors="replace") if path.exists() else ""
    *whole, rest = text.split("\n")
    lines: list[tuple[int, Consumed]] = []
    problems: list[tuple[int, str]] = []
    after = ""
    for number, line in enumerate(whole, start=1):
        consumed, said_after = _parse(line)
        if consumed is None:
            problems.append((number, "not a line of a consumption log"))
            after = "unknown"
            continue
        lines.append((number, consumed))
        if consumed.line(said_after) != line + "\n":
            problems.append((number, "its content was changed: the checksum does not fit"))
        elif said_after != after and after != "unknown":
            problems.append((number, "does not follow the line before it: lines were removed, doubled or moved"))
        after = _sum_of(line)
    return LogReading(tuple(lines), tuple(problems), bool(rest))


def newest_epoch(path: Path) -> int:
    """The epoch of the last whole line; 0 without one. For `Ledger.restore(above_epoch=...)`."""
    consumed, _ = _parse(_last_line(path))
    return consumed.epoch if consumed is not None else 0


def _parse(line: str) -> tuple[Consumed | None, str]:
    try:
        record = json.loads(line)
        after = record["after"]
        consumed = Consumed(**{item.name: record[item.name] for item in fields(Consumed)})
    except (ValueError, KeyError, TypeError):
        return None, ""
    numbers = (consumed.step, consumed.epoch, consumed.ticket_id, consumed.attempt, consumed.min_version)
    if not all(type(number) is int for number in numbers) or not isinstance(after, str):
        return None, ""
    return consumed, after


def _sum_of(line: str) -> str:
    """The checksum that a line gives for itself; "unknown" if it gives none."""
    try:
        return str(json.loads(line)["sum"])
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _last_sum(path: Path) -> str:
    line = _last_line(path)
    return _sum_of(line) if line else ""


def _last_line(path: Path) -> str:
    """The last line that has an end; empty without one."""
    if not path.exists():
        return ""
    *whole, _ = _tail(path).split(b"\n")
    return whole[-1].decode(errors="replace") if whole else ""


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    tail = _tail(path)
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if torn:
        os.truncate(path, path.stat().st_size - torn)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read()
