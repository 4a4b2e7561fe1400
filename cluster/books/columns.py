"""Many attempts as a few arrays: what segments and histories are made of. A thousand times as many fit into the same
memory as records, and numpy looks at all of them at once. Must never touch a file or Redis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from rollcall.cluster.books.ledger_table import Attempt, LedgerCounts, State
from rollcall.cluster.messages.arrays import Array

STATE_NAMES: tuple[State, ...] = ("leased", "produced", "scored", "committed", "dropped", "rolled_back")
COMMITTED, DROPPED, ROLLED_BACK = 3, 4, 5
_CODES = {name: code for code, name in enumerate(STATE_NAMES)}


def _none() -> Array:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class AttemptColumns:
    """Row i is an attempt, as `Attempt` has its fields. All arrays are [N], int64."""

    ticket: Array = field(default_factory=_none)
    attempt: Array = field(default_factory=_none)
    state: Array = field(default_factory=_none)  # of STATE_NAMES
    epoch: Array = field(default_factory=_none)
    version: Array = field(default_factory=_none)
    step: Array = field(default_factory=_none)
    reason: Array = field(default_factory=_none)  # of `reasons`
    final: Array = field(default_factory=_none)
    reasons: tuple[str, ...] = ("",)

    def __len__(self) -> int:
        return len(self.ticket)

    def arrays(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in ARRAYS}

    @classmethod
    def of(cls, attempts: Iterable[Attempt]) -> AttemptColumns:
        reasons: dict[str, int] = {"": 0}
        rows = [
            (a.ticket_id, a.attempt, _CODES[a.state], a.epoch, a.version, a.step, a.reason, a.final) for a in attempts
        ]
        listed = [(*row[:6], reasons.setdefault(row[6], len(reasons)), row[7]) for row in rows]
        table = np.array(listed, np.int64).reshape(-1, len(ARRAYS)).T
        return cls(**dict(zip(ARRAYS, table, strict=True)), reasons=tuple(reasons))

    @classmethod
    def joined(cls, parts: Sequence[AttemptColumns]) -> AttemptColumns:
        reasons: dict[str, int] = {"": 0}
        coded = []
        for part in parts:
            code = np.array([reasons.setdefault(reason, len(reasons)) for reason in part.reasons], np.int64)
            coded.append(replace(part, reason=code[part.reason]))
        if not coded:
            return cls()
        whole = {name: np.concatenate([getattr(part, name) for part in coded]) for name in ARRAYS}
        return cls(**whole, reasons=tuple(reasons))

    def where(self, chosen: Array) -> AttemptColumns:
        """The rows of a mask, or of indices."""
        return AttemptColumns(**{name: a[chosen] for name, a in self.arrays().items()}, reasons=self.reasons)

    def between(self, first: int, end: int) -> AttemptColumns:
        """The attempts of the tickets first..end-1."""
        return self.where((self.ticket >= first) & (self.ticket < end))

    def in_order(self) -> AttemptColumns:
        """By ticket, then by attempt."""
        return self.where(np.lexsort((self.attempt, self.ticket)))

    def at(self, index: int) -> Attempt:
        ticket, attempt, state, epoch, version, step, reason, final = (int(getattr(self, n)[index]) for n in ARRAYS)
        return Attempt(ticket, attempt, STATE_NAMES[state], epoch, version, step, self.reasons[reason], bool(final))

    def attempts(self) -> Iterator[Attempt]:
        yield from (self.at(index) for index in range(len(self)))

    def names(self) -> list[str]:
        """As `field_of` names them in Redis."""
        return [f"{ticket}:{n}" for ticket, n in zip(self.ticket.tolist(), self.attempt.tolist(), strict=True)]

    def values(self) -> list[str]:
        """As `Attempt.value` writes them; of attempts that have ended."""
        columns = (self.state, self.epoch, self.version, self.step, self.reason, self.final)
        return [
            f"{STATE_NAMES[state]}|{epoch}|{'' if version < 0 else version}|"
            f"{self.reasons[reason] if state == DROPPED else '' if step < 0 else step}|{final}"
            for state, epoch, version, step, reason, final in zip(*(c.tolist() for c in columns), strict=True)
        ]

    def same_as(self, other: AttemptColumns) -> bool:
        """Whether the rows are the same, in the same order."""
        mine, others = (columns.arrays() | {"reason": columns.reason_texts()} for columns in (self, other))
        return all(np.array_equal(mine[name], others[name]) for name in ARRAYS)

    def reason_texts(self) -> Array:
        return np.array(self.reasons, object)[self.reason]

    def counts(self, *, skipped_steps: int = 0) -> LedgerCounts:
        """As `recount` of the same attempts."""
        states = np.bincount(self.state, minlength=len(STATE_NAMES))
        why = np.bincount(self.reason[self.state == DROPPED], minlength=len(self.reasons))
        return LedgerCounts(
            issued=len(self),
            committed=int(states[COMMITTED]),
            dropped=int(states[DROPPED]),
            rolled_back=int(states[ROLLED_BACK]),
            in_flight=int(states[:COMMITTED].sum()),
            skipped_steps=skipped_steps,
            dropped_by_reason={r: int(n) for r, n in sorted(zip(self.reasons, why, strict=True)) if n},
        )


ARRAYS = tuple(item.name for item in fields(AttemptColumns) if item.name != "reasons")
