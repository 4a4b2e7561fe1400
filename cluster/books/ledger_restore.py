"""How the books are brought back to a checkpoint, whatever Redis kept: behind it, beyond it, or empty.
Pure: from what is written in both to what must be written now. Must never touch Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rollcall.cluster.books.columns import AttemptColumns
from rollcall.cluster.books.ledger_position import LedgerPosition, batches_of
from rollcall.cluster.books.ledger_table import (
    IN_FLIGHT,
    RESTORED,
    STATES,
    Key,
    LedgerCounts,
    LedgerTable,
    counts_of,
    field_of,
)
from rollcall.cluster.books.sealed import SealedIndex, total
from rollcall.cluster.errors import LedgerConflict


@dataclass(frozen=True)
class RestorePlan:
    """What a driver does after a restore: issue these tickets again, in this order, then go on with new ids."""

    epoch: int
    step: int
    reissue: tuple[Key, ...]  # (ticket_id, attempt), in ticket order
    next_ticket_id: int


@dataclass(frozen=True)
class Restoration:
    """What to write: entries that differ from what Redis has, those that it has and should not, the small tables."""

    attempts: Mapping[str, str]
    leftovers: Sequence[str]  # attempts that are in the segments, and in Redis still
    steps: Mapping[str, str]
    counts: LedgerCounts
    epochs: Mapping[int, int]
    plan: RestorePlan


def reconcile(table: LedgerTable, position: LedgerPosition, *, epoch: int, sealed: SealedIndex) -> Restoration:
    """The checkpoint is the authority. What it saw end stays as it saw it. Everything else that Redis knows is undone:
    in flight becomes dropped `restored`, committed becomes rolled back, and a drop for good that was decided after the
    checkpoint is one no more; so each of those tickets is issued again. No attempt number is used twice. Of tickets
    that are sealed nothing changes: every checkpoint that is kept has seen them end.

    Raises:
      LedgerConflict: the checkpoint is of a timeline that a later restore has ended, or does not fit the run, or is
        older than what is sealed.
    """
    _refuse_abandoned(table, position)
    _refuse_unsealed(position, sealed)
    ended = position.ended_columns(sealed.end)
    done = set(ended.ticket[ended.final == 1].tolist())
    known = dict(zip(ended.names(), ended.values(), strict=True))
    undone = {field_of(key): _undone(attempt.value) for key, attempt in position.in_flight().items()}
    last = dict(zip(ended.ticket.tolist(), ended.attempt.tolist(), strict=True))  # in order: the last one stays
    for ticket_id, number in position.in_flight():
        last[ticket_id] = max(last.get(ticket_id, 0), number)
    leftovers: list[str] = []
    for name, value in table.attempts.items():
        if name in known:  # as it ended, or to be written so
            continue
        ticket_id, number = map(int, name.split(":"))
        if ticket_id < sealed.end:
            leftovers.append(name)
            continue
        if ticket_id in done:
            raise LedgerConflict(
                f"ticket {ticket_id} attempt {number} is in the ledger, but the checkpoint of step {position.step} "
                "says that its ticket was done with before"
            )
        undone[name] = _undone(value)
        last[ticket_id] = max(last.get(ticket_id, 0), number)

    next_ticket_id = max(position.next_ticket_id, max(last, default=-1) + 1)
    reissue = tuple((t, last.get(t, 0) + 1) for t in range(sealed.end, next_ticket_id) if t not in done)
    partial = AttemptColumns.of(sealed.partial_attempts().values())
    steps = batches_of(AttemptColumns.joined([partial, ended]).in_order(), position.skipped_steps)
    skipped = sum(entry.skipped for entry in steps.values())
    unsealed = counts_of(Counter(map(_way, undone.values())), skipped_steps=0, duplicates_refused=0)
    duplicates = LedgerCounts.from_counters(table.counters).duplicates_refused
    counts = total((sealed.counts(), ended.counts(skipped_steps=skipped), unsealed))
    return Restoration(
        attempts={
            name: value for name, value in (*known.items(), *undone.items()) if table.attempts.get(name) != value
        },
        leftovers=leftovers,
        steps={str(step): entry.value for step, entry in steps.items()},
        counts=counts.model_copy(update={"duplicates_refused": max(duplicates, position.counts.duplicates_refused)}),
        epochs={**table.epochs, **position.epochs, epoch: position.step},
        plan=RestorePlan(epoch, position.step, reissue, next_ticket_id),
    )


def _undone(value: str) -> str:
    """An attempt that the checkpoint has not seen end, as it stands after the restore; both as ledger.lua writes them.
    Twice is as once. There may be a hundred thousand, so no records are made of them.

    Raises:
      ValueError: for what ledger.lua cannot have written.
    """
    state, epoch, version, detail, _ = value.split("|")
    if state in IN_FLIGHT:
        state, detail = "dropped", RESTORED
    elif state == "committed":
        state = "rolled_back"
    elif state not in STATES:
        raise ValueError(f"not an attempt: {value!r}")
    return f"{state}|{epoch}|{version}|{detail}|0"


def _way(value: str) -> tuple[str, str]:
    """(state, why it was dropped) of an attempt as ledger.lua writes it."""
    state, _, _, detail, _ = value.split("|")
    return state, detail if state == "dropped" else ""


def _refuse_abandoned(table: LedgerTable, position: LedgerPosition) -> None:
    if table.tickets_per_step not in (0, position.tickets_per_step):
        raise LedgerConflict(
            f"the checkpoint has {position.tickets_per_step} tickets per step, the run {table.tickets_per_step}: "
            "it is not one of this run"
        )
    for epoch, step in sorted(table.epochs.items()):
        if epoch > position.epoch and step < position.step:
            raise LedgerConflict(
                f"the checkpoint of step {position.step} (epoch {position.epoch}) was given up when epoch {epoch} went "
                f"back to step {step}: restore that one or a later one"
            )


def _refuse_unsealed(position: LedgerPosition, sealed: SealedIndex) -> None:
    if position.low_water < sealed.end:
        raise LedgerConflict(
            f"the checkpoint of step {position.step} had not seen the end of ticket {position.low_water}, but tickets "
            f"below {sealed.end} are sealed: what is sealed was covered by every checkpoint that was kept then. "
            "Restore a later one"
        )
    if position.sealed_below > sealed.end:
        raise LedgerConflict(
            f"the checkpoint of step {position.step} leaves the tickets below {position.sealed_below} to the run's "
            f"segments, but those end at {sealed.end}: put back the files of books/"
        )
