"""What a learner with kept experience says it was drawn from, held against the ledger: every attempt that it drew from
had been committed by then, in the same timeline, and every step says so once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from rollcall.cluster.books.audit_evidence import Discrepancy, Evidence
from rollcall.cluster.books.columns import COMMITTED, AttemptColumns
from rollcall.cluster.books.ledger_table import Attempt, Key
from rollcall.cluster.books.sampled import Misread, Sampled, read_sampled
from rollcall.cluster.books.sealed import SealedIndex, segments_of
from rollcall.cluster.errors import BooksDamaged
from rollcall.cluster.messages.arrays import Array

SHOWN = 10  # attempts of a step that are named
WHERE = "sampled.jsonl"


def sampled_discrepancies(
    path: Path, evidence: Evidence, index: SealedIndex, attempts: Mapping[Key, Attempt]
) -> Iterator[Discrepancy]:
    """`attempts`: of Redis. A run whose learner keeps nothing has no such log."""
    if not path.exists():
        return
    known = _Committed(path.parent.parent, index, attempts)
    expected = 0
    for item in read_sampled(path):
        if isinstance(item, Misread):
            yield Discrepancy(f"{WHERE} line {item.number}", item.problem)
            continue
        number, sampled = item
        newer = sampled.step >= evidence.num_steps or sampled.epoch > max(evidence.epochs, default=0)
        if evidence.void(sampled.step, sampled.epoch) or (newer and not evidence.completed):
            continue  # undone, or killed before the commit, or under way
        where = f"{WHERE} line {number}"
        if sampled.step != expected:
            yield Discrepancy(where, f"stands where step {expected} is due", sampled.step)
        expected = sampled.step + 1
        if known.whole:
            yield from known.against(where, sampled)
    if expected < evidence.num_steps:
        yield Discrepancy(WHERE, f"ends before step {expected}, but {evidence.num_steps} steps were committed")


class _Committed:
    """Every committed attempt, as few numbers: of millions of tickets, some hundred megabytes."""

    def __init__(self, run_directory: Path, index: SealedIndex, attempts: Mapping[Key, Attempt]) -> None:
        self.whole = True
        parts = [AttemptColumns.of(attempt for attempt in attempts.values() if attempt.ticket_id >= index.end)]
        for segment in segments_of(run_directory, index):
            if isinstance(segment, BooksDamaged):  # said by whoever audits what is sealed
                self.whole = False
                continue
            parts.append(segment.attempts)
        joined = [part.where(part.state == COMMITTED) for part in parts]
        ticket, attempt, step = (np.concatenate([getattr(p, n) for p in joined]) for n in ("ticket", "attempt", "step"))
        self._many = int(attempt.max(initial=0)) + 2
        keys = ticket * self._many + attempt
        order = np.argsort(keys)
        self._keys, self._steps = keys[order], step[order]

    def against(self, where: str, sampled: Sampled) -> Iterator[Discrepancy]:
        wanted: Array = sampled.tickets * self._many + np.minimum(sampled.attempts, self._many - 1)
        found = np.zeros(len(wanted), bool)
        if len(self._keys):
            at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            found = (self._keys[at] == wanted) & (self._steps[at] <= sampled.step)
        wrong = np.flatnonzero(~found)
        for i in wrong[:SHOWN].tolist():
            what = "drawn from, but the ledger has it committed at no step up to this one"
            yield Discrepancy(where, what, sampled.step, int(sampled.tickets[i]), int(sampled.attempts[i]))
        if len(wrong) > SHOWN:
            yield Discrepancy(where, f"so are {len(wrong) - SHOWN} more attempts", sampled.step)
