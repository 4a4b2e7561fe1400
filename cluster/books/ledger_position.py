"""The ledger's part of a checkpoint: small, JSON, and enough to write the books anew should Redis have lost them; what
lies in segments on the disk is not told again. Must never know Redis."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.books.columns import COMMITTED, AttemptColumns
from rollcall.cluster.books.history import History
from rollcall.cluster.books.ledger_table import IN_FLIGHT, Attempt, Key, LedgerCounts, StepEntry


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
    sealed_below: int = Field(default=0, ge=0, description="attempts of tickets below are in the run's segments")
    sealed: History = Field(description="every other attempt of the tickets below low_water")
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

    def ended(self, first: int = 0) -> dict[Key, Attempt]:
        """Every attempt that has ended, of the tickets from `first` on, or from where the segments end."""
        known: dict[Key, Attempt] = {}
        first = max(first, self.sealed_below)
        for history in (self.sealed.from_ticket(first), self.recent):
            for attempt in history.attempts():
                if attempt.ticket_id < first:
                    continue
                if attempt.key in known:
                    raise ValueError(f"{attempt} stands twice in the ledger's position of step {self.step}")
                known[attempt.key] = attempt
                if len(known) > self.counts.issued:
                    raise ValueError(f"the ledger's position of step {self.step} has more attempts than it counts")
        return known

    def ended_columns(self, first: int = 0) -> AttemptColumns:
        """As `ended`, in ticket order. Raises ValueError: as it."""
        first, most = max(first, self.sealed_below), self.counts.issued
        parts = [history.columns(first=first, most=most) for history in (self.sealed, self.recent)]
        found = AttemptColumns.joined(parts).in_order()
        if ((np.diff(found.ticket) == 0) & (np.diff(found.attempt) == 0)).any():
            raise ValueError(f"an attempt stands twice in the ledger's position of step {self.step}")
        return found

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


def batches_of(attempts: AttemptColumns, skipped_steps: Collection[int]) -> dict[int, StepEntry]:
    """The committed steps that attempts in ticket order amount to."""
    committed = attempts.where(attempts.state == COMMITTED)
    batches: dict[int, list[Key]] = {}
    epochs: dict[int, int] = {}
    columns = (committed.step, committed.ticket, committed.attempt, committed.epoch)
    for step, ticket, attempt, epoch in zip(*(column.tolist() for column in columns), strict=True):
        batches.setdefault(step, []).append((ticket, attempt))
        epochs[step] = epoch
    skipped = set(skipped_steps)
    return {step: StepEntry(step, epochs[step], step in skipped, tuple(batch)) for step, batch in batches.items()}
