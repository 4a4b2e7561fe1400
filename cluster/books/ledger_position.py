"""The ledger's part of a checkpoint: small, JSON, and enough to write the books anew should Redis have lost them.
Must never know Redis."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.books.ledger_table import IN_FLIGHT, Attempt, Key, LedgerCounts, StepEntry

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
            block = {"committed": committed[:PLAIN_ROWS], "ended": ended[:PLAIN_ROWS]}
            packed.append(base64.b64encode(zlib.compress(json.dumps(block, separators=(",", ":")).encode())).decode())
            committed, ended = committed[PLAIN_ROWS:], ended[PLAIN_ROWS:]
        return History(packed=packed, committed=committed, ended=ended)

    def attempts(self) -> Iterator[Attempt]:
        """Every attempt, in no promised order. Raises ValueError for rows that mean nothing."""
        for text in self.packed:
            block = json.loads(zlib.decompress(base64.b64decode(text)))
            yield from _attempts(block["committed"], block["ended"])
        yield from _attempts(self.committed, self.ended)


class LedgerPosition(BaseModel):
    """Where the books stood at a step boundary. All tickets below `low_water` are done with (committed, or dropped for
    good); from there to `next_ticket_id` those in `open` are not, and the others are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    epoch: int = Field(ge=0)
    step: int = Field(ge=0, description="steps committed")
    tickets_per_step: int = Field(ge=1)
    next_ticket_id: int = Field(ge=0)
    low_water: int = Field(ge=0)
    open: list[tuple[int, int, str]] = Field(description="[ticket, its last attempt (0: none yet), its state]")
    epochs: dict[int, int] = Field(description="epoch -> the step at which it was opened")
    skipped_steps: list[int] = Field(default_factory=list)
    counts: LedgerCounts
    sealed: History = Field(description="every attempt of the tickets below low_water")
    recent: History = Field(description="every ended attempt of the tickets from low_water on")

    @classmethod
    def start(cls, tickets_per_step: int) -> LedgerPosition:
        """Before the first step."""
        return cls(
            epoch=0,
            step=0,
            tickets_per_step=tickets_per_step,
            next_ticket_id=0,
            low_water=0,
            open=[],
            epochs={},
            counts=LedgerCounts(),
            sealed=History(),
            recent=History(),
        )

    def ended(self) -> dict[Key, Attempt]:
        """Every attempt that has ended."""
        known: dict[Key, Attempt] = {}
        for history in (self.sealed, self.recent):
            for attempt in history.attempts():
                if attempt.key in known:
                    raise ValueError(f"{attempt} stands twice in the ledger's position of step {self.step}")
                known[attempt.key] = attempt
                if len(known) > self.counts.issued:
                    raise ValueError(f"the ledger's position of step {self.step} has more attempts than it counts")
        return known

    def in_flight(self) -> dict[Key, Attempt]:
        return {
            (ticket, attempt): Attempt(ticket, attempt, cast(Any, state), self.epoch)
            for ticket, attempt, state in self.open
            if state in IN_FLIGHT
        }

    def step_entries(self, ended: Mapping[Key, Attempt]) -> dict[int, StepEntry]:
        """The committed steps that these attempts amount to."""
        batches: dict[int, list[Attempt]] = {}
        for attempt in ended.values():
            if attempt.state == "committed":
                batches.setdefault(attempt.step, []).append(attempt)
        skipped = set(self.skipped_steps)
        return {
            step: StepEntry(step, batch[0].epoch, step in skipped, tuple(sorted(attempt.key for attempt in batch)))
            for step, batch in batches.items()
        }


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
