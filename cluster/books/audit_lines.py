"""The consumption log as an audit walks through it: in the order of tickets, as segments of the ledger ask for it, few
of its own segments in memory at a time."""

from __future__ import annotations

from pathlib import Path

from rollcall.cluster.books.audit_evidence import Discrepancy
from rollcall.cluster.books.consumption import read_live_columns
from rollcall.cluster.books.consumption_line import LogReading
from rollcall.cluster.books.consumption_segment import (
    Folded,
    FoldedLines,
    chain_problems,
    folded,
    joined,
    lines_as_columns,
    read_folded,
)
from rollcall.cluster.errors import BooksDamaged


class LogStream:
    """Read once, from the lowest ticket up."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damaged: list[Discrepancy] = []
        self._problems: list[tuple[int, str]] = []
        self._kept: list[FoldedLines] = []
        self._ahead: list[Folded] = []
        self._torn = False
        try:
            live, problems, self._torn = read_live_columns(path)
            self._ahead = folded(path)
        except BooksDamaged as error:
            self._say(error)
            return
        self._problems += [*chain_problems(self._ahead), *problems]
        self._kept.append(live)
        self._ahead.sort(key=lambda segment: segment.first_ticket, reverse=True)

    def below(self, ticket: int) -> FoldedLines:
        """The lines about tickets below this one that were not given before, in no promised order."""
        while self._ahead and self._ahead[-1].first_ticket < ticket:
            self._read(self._ahead.pop())
        whole = joined(self._kept) if self._kept else lines_as_columns(())
        self._kept = [whole.where(whole.ticket >= ticket)]
        return whole.where(whole.ticket < ticket)

    def rest(self) -> LogReading:
        """All others, in the log's order, and what is wrong with any line of it."""
        while self._ahead:
            self._read(self._ahead.pop())
        lines = sorted((line for part in self._kept for line in part.lines()), key=lambda numbered: numbered[0])
        return LogReading(tuple(lines), tuple(sorted(self._problems)), self._torn)

    def _read(self, segment: Folded) -> None:
        try:
            part = read_folded(self._path, segment)
        except BooksDamaged as error:
            self._say(error)
            return
        self._problems += part.problems
        self._kept.append(part)

    def _say(self, error: BooksDamaged) -> None:
        self.damaged.append(Discrepancy("consumption log", str(error).removeprefix(f"{self._path.parent}/")))
