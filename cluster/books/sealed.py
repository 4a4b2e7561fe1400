"""Sealed books: what became of every attempt of the tickets that no resume can come back to, in segments on the disk
instead of in Redis. `<run>/books/index.json` says which segments count; a file that it does not name is none.

A segment is on the disk before the index names it, and the index is on the disk before anything leaves Redis. So at any
moment a ticket is in the segments that the index names, or in Redis, or in both: then the segment's word counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from rollcall.cluster.books.columns import ARRAYS, COMMITTED, AttemptColumns
from rollcall.cluster.books.ledger_table import Attempt, Key, LedgerCounts, StepEntry
from rollcall.cluster.books.segment_file import read_segment, sync_directory, write_segment
from rollcall.cluster.errors import BooksDamaged
from rollcall.cluster.files import write_aside
from rollcall.cluster.messages.arrays import Array

BOOKS = "books"  # of a run directory
INDEX = "index.json"
SEGMENT_TICKETS = 1 << 15  # the least that a segment is made of: a small run has none
MOST_TICKETS = 1 << 18  # and the most

# [step, ticket, attempt, epoch, version] of a sealed attempt, other tickets of whose step are not sealed yet.
PartialRow = tuple[int, int, int, int, int]


class SealedSegment(BaseModel):
    """Every attempt of the tickets first..end-1, and the steps that are whole with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    first: int
    end: int
    checksum: str
    counts: LedgerCounts


class SealedIndex(BaseModel):
    """Which segments there are, in ticket order and without a gap."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    segments: tuple[SealedSegment, ...] = ()
    partial: tuple[PartialRow, ...] = Field(default=(), description="of steps that also have tickets beyond the end")

    @property
    def end(self) -> int:
        """Tickets below are sealed."""
        return self.segments[-1].end if self.segments else 0

    def counts(self, below: int | None = None) -> LedgerCounts:
        """Of all segments, or of those below a ticket at which one ends."""
        return total(s.counts for s in self.segments if below is None or s.end <= below)

    def partial_attempts(self) -> dict[Key, Attempt]:
        return {
            (ticket, attempt): Attempt(ticket, attempt, "committed", epoch, version, step, final=True)
            for step, ticket, attempt, epoch, version in self.partial
        }


@dataclass(frozen=True)
class Segment:
    """One segment as it was read."""

    name: str
    first: int
    end: int
    attempts: AttemptColumns  # in ticket order
    step: Array  # [S] steps whose tickets are all in this segment and those before it
    step_epoch: Array  # [S]
    skipped: Array  # [S] 1 where the loss was not finite


class SealedBooks:
    """Of one run. Only the driver appends."""

    def __init__(self, run_directory: Path, *, least: int = SEGMENT_TICKETS, most: int = MOST_TICKETS) -> None:
        """Raises BooksDamaged: when there is an index that cannot be read."""
        self._folder = run_directory / BOOKS
        self._least, self._most = least, most
        self.index = read_index(run_directory)

    @property
    def end(self) -> int:
        return self.index.end

    def next_end(self, covered: int, *, whole: bool = False) -> int:
        """Where the next segment ends, of tickets that are covered below `covered`; its beginning, where none is due.
        `whole`: however few they are."""
        number = covered - self.end
        return self.end + min(number, self._most) if number >= (1 if whole else self._least) else self.end

    def append(self, attempts: AttemptColumns, end: int, steps: list[StepEntry]) -> None:
        """Every attempt from the segments' end to `end`, in ticket order; `steps`: those that are whole with it."""
        first = self.end
        skipped = sum(entry.skipped for entry in steps)
        name = f"attempts-{first:012d}-{end:012d}.seg"
        rows = np.array([(e.step, e.epoch, e.skipped) for e in steps], np.int64).reshape(-1, 3)
        counts = attempts.counts(skipped_steps=skipped)
        partial = self._partial(attempts, {entry.step for entry in steps})
        meta: dict[str, JsonValue] = {"first": first, "end": end, "reasons": list(attempts.reasons)}
        meta |= {"counts": counts.model_dump(), "partial": [list(row) for row in partial]}
        columns = attempts.arrays() | {"steps.step": rows[:, 0], "steps.epoch": rows[:, 1], "steps.skipped": rows[:, 2]}
        checksum = write_segment(self._folder / name, meta, columns)
        added = SealedSegment(file=name, first=first, end=end, checksum=checksum, counts=counts)
        self._book(SealedIndex(segments=(*self.index.segments, added), partial=partial))

    def clear(self) -> list[str]:
        """Removes what a killed driver has left of a segment that was never booked. Returns the names."""
        known = {INDEX, *(segment.file for segment in self.index.segments)}
        found = sorted(path for path in self._folder.glob("*") if path.name not in known and path.is_file())
        for path in found:
            path.unlink()
        return [path.name for path in found]

    def _partial(self, attempts: AttemptColumns, whole: set[int]) -> tuple[PartialRow, ...]:
        known = [row for row in self.index.partial if row[0] not in whole]
        outside = committed_outside(attempts, whole).attempts()
        return tuple(sorted([*known, *((a.step, *a.key, a.epoch, a.version) for a in outside)]))

    def _book(self, index: SealedIndex) -> None:
        write_aside(self._folder / INDEX, index.model_dump_json() + "\n")
        sync_directory(self._folder)
        self.index = index


def read_index(run_directory: Path) -> SealedIndex:
    """Empty where nothing is sealed.

    Raises:
      BooksDamaged: when it cannot be read, or its segments do not follow each other.
    """
    path = run_directory / BOOKS / INDEX
    try:
        index = SealedIndex.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        if any((run_directory / BOOKS).glob("*.seg")) and not _first_was_torn(run_directory / BOOKS):
            raise BooksDamaged(f"{path}: missing, though there are segments beside it") from None
        return SealedIndex()
    except (OSError, ValidationError) as error:
        raise BooksDamaged(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    ends = [0, *(segment.end for segment in index.segments)]
    if index.format != 1 or any(s.first != end for s, end in zip(index.segments, ends, strict=False)):
        raise BooksDamaged(f"{path}: its segments do not follow each other, or it is of another release")
    return index


def read_sealed(run_directory: Path, segment: SealedSegment) -> Segment:
    """Raises BooksDamaged: naming the file, when it is not what the index says."""
    path = run_directory / BOOKS / segment.file
    meta, columns = read_segment(path)
    try:
        attempts = AttemptColumns(
            **{name: columns[name] for name in ARRAYS}, reasons=tuple(cast(list[str], meta["reasons"]))
        )
        steps = (columns["steps.step"], columns["steps.epoch"], columns["steps.skipped"])
        said = (meta["first"], meta["end"])
    except KeyError as error:
        raise BooksDamaged(f"{path}: not a segment of attempts: it has no {error}") from None
    if said != (segment.first, segment.end):
        raise BooksDamaged(
            f"{path}: is of tickets {said[0]} to {said[1]}, the index has {segment.first} to {segment.end}"
        )
    return Segment(segment.file, segment.first, segment.end, attempts, *steps)


def segments_of(run_directory: Path, index: SealedIndex) -> Iterator[Segment | BooksDamaged]:
    """One after the other, so that one is in memory at a time."""
    for segment in index.segments:
        try:
            yield read_sealed(run_directory, segment)
        except BooksDamaged as error:
            yield error


def committed_outside(attempts: AttemptColumns, steps: set[int]) -> AttemptColumns:
    """Committed at other steps than these."""
    inside = np.isin(attempts.step, np.fromiter(steps, np.int64, len(steps)))
    return attempts.where((attempts.state == COMMITTED) & ~inside)


def total(counts: Iterator[LedgerCounts] | tuple[LedgerCounts, ...]) -> LedgerCounts:
    """Their sum."""
    sums: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for some in counts:
        for name, number in some.model_dump(exclude={"dropped_by_reason"}).items():
            sums[name] = sums.get(name, 0) + number
        for reason, number in some.dropped_by_reason.items():
            reasons[reason] = reasons.get(reason, 0) + number
    return LedgerCounts(**sums, dropped_by_reason=dict(sorted(reasons.items())))


def _first_was_torn(folder: Path) -> bool:
    """The driver was killed between its first segment and the index: nothing has left Redis."""
    return [path.name.partition("-")[2][:12] for path in folder.glob("*.seg")] == ["0" * 12]
