"""Which learner steps are whole once a range of tickets is sealed, and whether Redis has them as their attempts say.
What does not add up is not sealed: it stays where an audit names it."""

from __future__ import annotations

from collections import defaultdict
from typing import cast

from rollcall.cluster.books.columns import COMMITTED, AttemptColumns
from rollcall.cluster.books.ledger_table import PAGE_ENTRIES, Key, StepEntry
from rollcall.cluster.books.sealed import SealedIndex
from rollcall.cluster.store.store import Store


def whole_steps(
    store: Store, key: str, attempts: AttemptColumns, sealed: SealedIndex, tickets_per_step: int
) -> list[StepEntry] | None:
    """Steps all of whose tickets are in the segments, or among `attempts`; None where Redis has another batch of one.
    `key`: of the steps."""
    batches: dict[int, list[Key]] = defaultdict(list)
    epochs: dict[int, int] = {}
    for step, ticket, attempt, epoch, _ in sealed.partial:
        batches[step].append((ticket, attempt))
        epochs[step] = epoch
    committed = attempts.where(attempts.state == COMMITTED)
    columns = (committed.step, committed.ticket, committed.attempt, committed.epoch)
    for step, ticket, attempt, epoch in zip(*(column.tolist() for column in columns), strict=True):
        batches[step].append((ticket, attempt))
        epochs[step] = epoch
    whole = sorted(step for step, batch in batches.items() if len(batch) == tickets_per_step)
    entries: list[StepEntry] = []
    for start in range(0, len(whole), PAGE_ENTRIES):
        page = whole[start : start + PAGE_ENTRIES]
        values = store.call(lambda client: client.hmget(key, [str(step) for step in page]))  # noqa: B023
        for step, value in zip(page, cast(list[str | None], values), strict=True):
            skipped = value is not None and "|skipped|" in value
            entry = StepEntry(step, epochs[step], skipped, tuple(sorted(batches[step])))
            if value != entry.value:
                return None
            entries.append(entry)
    return entries
