"""The consumption log: what the learner says it consumed, a line per trajectory, kept apart from the ledger so that an
audit can hold one against the other. It must never read the ledger, nor be written by the driver."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path
from typing import Protocol

from rollcall.cluster.books.consumption_line import (
    Consumed,
    LogReading,
    first_sum,
    parse_line,
    read_lines,
    sum_of,
)
from rollcall.cluster.books.consumption_segment import (
    Folded,
    FoldedLines,
    chain_problems,
    fold,
    folded,
    lines_as_columns,
    newest_folded,
    plain_lines,
    read_folded,
)
from rollcall.cluster.books.log_file import alone, cut_torn_line, last_line
from rollcall.cluster.books.sampled import SAMPLED_NAME, Sampled, SampledLog
from rollcall.cluster.files import append_whole, once_there_is_room
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Header

LOG_NAME = "consumption.jsonl"  # in <run>/logs/
ROTATE_BYTES = 1 << 25  # 160,000 lines


class Consumable(Protocol):
    """What the log needs to know of a trajectory."""

    @property
    def header(self) -> Header: ...
    @property
    def min_policy_version(self) -> int: ...
    @property
    def reward_model_version(self) -> str: ...
    def digest(self) -> str: ...


class ConsumptionLog:
    """Appends to a log, going on where a killed learner left off: a torn last line is cut away first.

    A learner whose driver was killed may finish its step beside its successor. Each append has the file to itself and
    follows whatever stands there by then, so both are told, and the epoch tells them apart.

    A log that has grown to `rotate_bytes` is folded into a segment beside it, and begins anew where that ends.
    """

    def __init__(self, path: Path, *, rotate_bytes: int = ROTATE_BYTES) -> None:
        self._path = path
        self._rotate_bytes = rotate_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._size = -1  # of the file after our last append
        self._after = ""
        self._sampled: SampledLog | None = None
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

    def append_sampled(self, step: int, epoch: int, num_drawn: int, tickets: Array, attempts: Array) -> None:
        """Of a learner that keeps what it consumed: the attempts that this step was drawn from."""
        if self._sampled is None:
            self._sampled = SampledLog(self._path.with_name(SAMPLED_NAME))
        self._sampled.append(Sampled(step, epoch, num_drawn, tickets, attempts))

    def rotate(self) -> None:
        """Folds what there is into a segment, however little."""
        with alone(self._path) as file:
            self._go_on(file)
            self._fold(file)

    def _write(self, items: Sequence[Consumed]) -> None:
        once_there_is_room(lambda: self._try_to_write(items), self._path.parent)

    def _try_to_write(self, items: Sequence[Consumed]) -> None:
        with alone(self._path) as file:
            self._go_on(file)
            if os.fstat(file.fileno()).st_size >= self._rotate_bytes:
                self._fold(file)
            text, after = [], self._after
            for item in items:
                line, after = item.line_and_sum(after)
                text.append(line)
            append_whole(file.fileno(), "".join(text).encode())
            self._after = after
            self._size = os.fstat(file.fileno()).st_size

    def _go_on(self, file: FileIO) -> None:
        """From whatever somebody else has left."""
        if os.fstat(file.fileno()).st_size == self._size:
            return
        cut_torn_line(self._path)
        newest = newest_folded(self._path)
        if newest is not None and _begins_with(self._path, newest):  # its writer was killed before it could cut them
            beyond = self._path.read_bytes()[newest.size_bytes :]
            os.ftruncate(file.fileno(), 0)
            file.write(beyond)
        line = last_line(self._path)
        self._after = sum_of(line) if line else newest.last_sum if newest is not None else ""

    def _fold(self, file: FileIO) -> None:
        """The segment is on the disk before the lines leave the log."""
        newest = newest_folded(self._path)
        first = 1 if newest is None else newest.end
        after = "" if newest is None else newest.last_sum
        content = self._path.read_bytes()
        if content:
            fold(self._path, content, first=first, after=after)
            os.ftruncate(file.fileno(), 0)
        self._size = 0


def _begins_with(path: Path, newest: Folded) -> bool:
    """Whether the log still has the lines of the newest segment."""
    with path.open("rb") as file:
        return _is_first(file.readline(), newest)


def _is_first(content: bytes, newest: Folded) -> bool:
    return first_sum(content) == newest.first_sum != "unknown"


def read_log(path: Path) -> LogReading:
    """Every line of a log, its segments' first, and what is wrong with which. A log that is missing is empty.

    Raises:
      BooksDamaged: for a segment that is not as it was written; it is named.
    """
    live = read_live(path)
    segments = folded(path)
    parts = [read_folded(path, segment).reading() for segment in segments]
    return LogReading(
        tuple(line for part in (*parts, live) for line in part.lines),
        (*chain_problems(segments), *(problem for part in (*parts, live) for problem in part.problems)),
        live.torn,
        live.last_sum,
    )


def read_live(path: Path) -> LogReading:
    """The lines that are in no segment yet."""
    content, first, after = _live(path)
    return read_lines(content.decode(errors="replace"), first=first, after=after)


def read_live_columns(path: Path) -> tuple[FoldedLines, tuple[tuple[int, str], ...], bool]:
    """As `read_live`: the lines, what is wrong with them, and whether the last one is torn."""
    content, first, after = _live(path)
    whole, end, rest = content.rpartition(b"\n")
    plain = plain_lines(whole + end, first=first, after=after)
    if plain is not None:
        return plain, (), bool(rest)
    reading = read_lines(content.decode(errors="replace"), first=first, after=after)
    return lines_as_columns(reading.lines), reading.problems, reading.torn


def _live(path: Path) -> tuple[bytes, int, str]:
    """Lines that are in no segment yet, the number of the first, and the checksum that it follows."""
    content = path.read_bytes() if path.exists() else b""  # before the segments: what is folded meanwhile is in both
    newest = newest_folded(path)
    if newest is None:
        return content, 1, ""
    if _is_first(content, newest):
        content = content[newest.size_bytes :]
    return content, newest.end, newest.last_sum


def newest_epoch(path: Path) -> int:
    """The epoch of the last whole line; 0 without one. For `Ledger.restore(above_epoch=...)`."""
    consumed, _ = parse_line(last_line(path))
    if consumed is not None:
        return consumed.epoch
    newest = newest_folded(path)
    return newest.last_epoch if newest is not None else 0


__all__ = ["LOG_NAME", "Consumed", "ConsumptionLog", "LogReading", "newest_epoch", "read_live", "read_log"]
