"""How attempts ended, run-length encoded, as a checkpoint carries them: a run without faults is a handful of rows,
however long. Must never know Redis, nor the segments on the disk."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.books.columns import COMMITTED, DROPPED, ROLLED_BACK, AttemptColumns
from rollcall.cluster.books.ledger_table import IN_FLIGHT, Attempt
from rollcall.cluster.messages.arrays import Array

PLAIN_ROWS = 2048  # rows kept as plain JSON; older ones are compressed in blocks of this size

# [step, num_steps, ticket, per_step, attempt, epoch, lag]: num_steps steps, each with the next per_step tickets, all at
# this attempt, each produced `lag` versions before its step. A run without faults is a handful of such rows.
CommittedRow = list[int]
# [ticket, num_tickets, attempt, epoch, version, what, final]: `what` is "dropped:reason" or "rolled_back:step".
EndedRow = list[int | str]


class History(BaseModel):
    """Attempts that have ended, run-length encoded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    packed: list[str] = Field(default_factory=list, description="older rows: base64 of zlib of {committed, ended}")
    committed: list[CommittedRow] = Field(default_factory=list)
    ended: list[EndedRow] = Field(default_factory=list)

    def extended(self, attempts: Iterable[Attempt]) -> History:
        """This history and more attempts, none of them in flight."""
        committed = [list(row) for row in self.committed]
        ended = [list(row) for row in self.ended]
        new = list(attempts)
        for row in _steps_of([attempt for attempt in new if attempt.state == "committed"]):
            _append_steps(committed, row)
        for attempt in sorted((a for a in new if a.state != "committed"), key=lambda a: (a.attempt, a.ticket_id)):
            assert attempt.state not in IN_FLIGHT
            _append_ended(ended, attempt)
        packed = list(self.packed)
        while len(committed) + len(ended) > 2 * PLAIN_ROWS:
            packed.append(_packed(committed[:PLAIN_ROWS], ended[:PLAIN_ROWS]))
            committed, ended = committed[PLAIN_ROWS:], ended[PLAIN_ROWS:]
        return History(packed=packed, committed=committed, ended=ended)

    def attempts(self) -> Iterator[Attempt]:
        """Every attempt, in no promised order. Raises ValueError for rows that mean nothing."""
        for text in self.packed:
            yield from _attempts(*_unpacked(text))
        yield from _attempts(self.committed, self.ended)

    def from_ticket(self, first: int) -> History:
        """Without what is known of tickets below `first` alone; up to a step of them may stay."""
        packed: list[str] = []
        for text in self.packed:
            committed, ended = _unpacked(text)
            kept = (_committed_from(committed, first), _ended_from(ended, first))
            if any(kept):
                packed.append(text if kept == (committed, ended) else _packed(*kept))
        return History(
            packed=packed, committed=_committed_from(self.committed, first), ended=_ended_from(self.ended, first)
        )

    def columns(self, *, first: int = 0, most: int | None = None) -> AttemptColumns:
        """Every attempt of the tickets from `first` on, in ticket order.

        Raises:
          ValueError: for rows that mean nothing, or that make more than `most` attempts.
        """
        rows = [*(_unpacked(text) for text in self.packed), (self.committed, self.ended)]
        committed = [row for some, _ in rows for row in _committed_from(some, first)]
        ended = [row for _, some in rows for row in _ended_from(some, first)]
        number = sum(row[1] * row[3] for row in committed) + sum(int(row[1]) for row in ended)
        if most is not None and number > most:
            raise ValueError(f"{number} attempts, of {most} at the most")
        found = AttemptColumns.joined([_committed_columns(committed), _ended_columns(ended)])
        return found.where(found.ticket >= first).in_order()


def _steps_of(committed: list[Attempt]) -> Iterator[CommittedRow]:
    """Rows of one step each: runs of consecutive tickets that are alike."""
    row: CommittedRow | None = None
    for attempt in sorted(committed, key=lambda a: (a.step, a.ticket_id)):
        alike = [attempt.attempt, attempt.epoch, attempt.step - attempt.version]
        if row is not None and row[0] == attempt.step and row[2] + row[3] == attempt.ticket_id and row[4:] == alike:
            row[3] += 1
            continue
        if row is not None:
            yield row
        row = [attempt.step, 1, attempt.ticket_id, 1, *alike]
    if row is not None:
        yield row


def _append_steps(rows: list[CommittedRow], row: CommittedRow) -> None:
    if rows:
        step, num_steps, ticket, per_step, *alike = rows[-1]
        if row == [step + num_steps, 1, ticket + num_steps * per_step, per_step, *alike]:
            rows[-1][1] += 1
            return
    rows.append(row)


def _append_ended(rows: list[EndedRow], attempt: Attempt) -> None:
    dropped = attempt.state == "dropped"
    what = f"dropped:{attempt.reason}" if dropped else f"rolled_back:{attempt.step}"
    row: EndedRow = [attempt.ticket_id, 1, attempt.attempt, attempt.epoch, attempt.version, what, int(attempt.final)]
    if rows and rows[-1][2:] == row[2:] and int(rows[-1][0]) + int(rows[-1][1]) == attempt.ticket_id:
        rows[-1][1] = int(rows[-1][1]) + 1
    else:
        rows.append(row)


def _attempts(committed: list[CommittedRow], ended: list[EndedRow]) -> Iterator[Attempt]:
    for step, num_steps, ticket, per_step, attempt, epoch, lag in committed:
        for i in range(num_steps * per_step):
            at = step + i // per_step
            yield Attempt(ticket + i, attempt, "committed", epoch, version=at - lag, step=at, final=True)
    for first, number, tried, opened, version, what, final in ended:
        state, _, detail = str(what).partition(":")
        for ticket in range(int(first), int(first) + int(number)):
            known = Attempt(ticket, int(tried), "dropped", int(opened), version=int(version))
            if state == "dropped":
                yield replace(known, reason=detail, final=bool(final))
            elif state == "rolled_back":
                yield replace(known, state="rolled_back", step=int(detail))
            else:
                raise ValueError(f"{what!r} is no way for an attempt to end")


def _packed(committed: list[CommittedRow], ended: list[EndedRow]) -> str:
    block = {"committed": committed, "ended": ended}
    return base64.b64encode(zlib.compress(json.dumps(block, separators=(",", ":")).encode())).decode()


def _unpacked(text: str) -> tuple[list[CommittedRow], list[EndedRow]]:
    block = json.loads(zlib.decompress(base64.b64decode(text)))
    return block["committed"], block["ended"]


def _committed_from(rows: list[CommittedRow], first: int) -> list[CommittedRow]:
    """Rows that reach beyond `first`, without their whole steps below it."""
    kept: list[CommittedRow] = []
    for step, num_steps, ticket, per_step, *alike in rows:
        below = min(max(0, (first - ticket) // max(per_step, 1)), num_steps)
        if below < num_steps:
            kept.append([step + below, num_steps - below, ticket + below * per_step, per_step, *alike])
    return kept


def _ended_from(rows: list[EndedRow], first: int) -> list[EndedRow]:
    kept: list[EndedRow] = []
    for ticket, number, *alike in rows:
        below = max(0, first - int(ticket))
        if below < int(number):
            kept.append([int(ticket) + below, int(number) - below, *alike])
    return kept


def _committed_columns(rows: list[CommittedRow]) -> AttemptColumns:
    step, num_steps, ticket, per_step, attempt, epoch, lag = np.array(rows, np.int64).reshape(-1, 7).T
    numbers = num_steps * per_step
    of_row = np.repeat(np.arange(len(rows)), numbers)
    within = _within(numbers)
    at = step[of_row] + within // np.maximum(per_step[of_row], 1)
    same = np.ones_like(of_row)
    return AttemptColumns(
        ticket=ticket[of_row] + within,
        attempt=attempt[of_row],
        state=COMMITTED * same,
        epoch=epoch[of_row],
        version=at - lag[of_row],
        step=at,
        reason=0 * same,
        final=same,
    )


def _ended_columns(rows: list[EndedRow]) -> AttemptColumns:
    reasons: dict[str, int] = {"": 0}
    coded: list[list[int]] = []
    for ticket, number, tried, opened, oldest, what, last in rows:
        kind, _, detail = str(what).partition(":")
        if kind == "dropped":
            how = [DROPPED, -1, reasons.setdefault(detail, len(reasons)), int(bool(last))]
        elif kind == "rolled_back":
            how = [ROLLED_BACK, int(detail), 0, 0]
        else:
            raise ValueError(f"{what!r} is no way for an attempt to end")
        coded.append([int(ticket), int(number), int(tried), int(opened), int(oldest), *how])
    first, numbers, attempt, epoch, version, state, step, reason, final = np.array(coded, np.int64).reshape(-1, 9).T
    of_row = np.repeat(np.arange(len(rows)), numbers)
    return AttemptColumns(
        ticket=first[of_row] + _within(numbers),
        attempt=attempt[of_row],
        state=state[of_row],
        epoch=epoch[of_row],
        version=version[of_row],
        step=step[of_row],
        reason=reason[of_row],
        final=final[of_row],
        reasons=tuple(reasons),
    )


def _within(numbers: Array) -> Array:
    """0, 1, ... of each row."""
    total = int(numbers.sum())
    within: Array = np.arange(total) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    return within
