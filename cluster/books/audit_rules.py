"""The rules that a balanced ledger obeys in itself: tickets, attempts, counters, steps, lag. Each is a function from
the evidence to what is wrong. Must never trust an entry that another entry can be held against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from rollcall.cluster.books.audit_evidence import Discrepancy, Evidence, about, gaps, lag_outside, state_of
from rollcall.cluster.books.ledger_table import IN_FLIGHT, RESTORED, Attempt, Key, LedgerCounts, recount
from rollcall.cluster.books.sealed import total


def tickets(evidence: Evidence) -> Iterator[Discrepancy]:
    """Ticket ids have no gap; a ticket's attempts count from 1 without one; none follows a final one."""
    by_ticket: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in evidence.attempts.values():
        by_ticket[attempt.ticket_id].append(attempt)
    first = evidence.sealed.end
    for gap in gaps(by_ticket, start=first, end=max(by_ticket, default=first - 1) + 1):
        yield Discrepancy("ledger", f"ticket {gap}: not in the ledger, though later ones are")
    for ticket_id in sorted(by_ticket):
        tries = by_ticket[ticket_id]
        if len(tries) > 1 or tries[0].attempt != 1:
            yield from of_ticket(tries)


def of_ticket(attempts: Iterable[Attempt]) -> Iterator[Discrepancy]:
    """Of all attempts at one ticket."""
    tries = sorted(attempts, key=lambda attempt: attempt.attempt)
    for gap in gaps((attempt.attempt for attempt in tries), start=1, end=tries[-1].attempt + 1):
        yield Discrepancy(
            "ledger", f"attempt {gap} is missing, though a later one is there", ticket_id=tries[0].ticket_id
        )
    committed = [attempt for attempt in tries if attempt.state == "committed"]
    for again in committed[1:]:
        first = committed[0]
        yield about(again, f"committed, but so was attempt {first.attempt}, at step {first.step}")
    for attempt in tries[:-1]:
        if attempt.final:
            yield about(attempt, f"is final ({attempt.state}), but attempt {tries[-1].attempt} follows it")
        elif attempt.state in IN_FLIGHT:
            yield about(attempt, f"is still {attempt.state}, but attempt {tries[-1].attempt} follows it")


def attempts(evidence: Evidence) -> Iterator[Discrepancy]:
    """Every attempt is in a state that its epoch and the later ones allow."""
    newest = max(evidence.epochs, default=0)
    for epoch in sorted({attempt.epoch for attempt in evidence.attempts.values()} - set(evidence.epochs)):
        of_it = [attempt for attempt in evidence.attempts.values() if attempt.epoch == epoch]
        yield about(min(of_it, key=str), f"is of epoch {epoch}, which was never opened, as {len(of_it)} attempts are")
    for attempt in evidence.attempts.values():
        if attempt.state in IN_FLIGHT:
            if evidence.completed:
                yield about(attempt, f"is {attempt.state}, though the run is completed")
            if attempt.epoch < newest:
                yield about(attempt, f"is {attempt.state} in epoch {attempt.epoch}, which epoch {newest} has ended")
        elif attempt.state == "committed":
            if not attempt.final:
                yield about(attempt, "committed, but not marked as final")
            if evidence.void(attempt.step, attempt.epoch):
                yield about(
                    attempt, f"committed in epoch {attempt.epoch}, but a later epoch went back to before the step"
                )
        elif attempt.state == "rolled_back":
            if not evidence.void(attempt.step, attempt.epoch):
                yield about(attempt, "rolled back, but no later epoch went back to before the step")
        elif attempt.reason == RESTORED and attempt.epoch >= newest:
            yield about(attempt, "dropped as restored, but nothing was restored since its epoch")


def counters(evidence: Evidence) -> Iterator[Discrepancy]:
    """issued = committed + dropped + rolled_back + in_flight, and each counter is what counting the attempts gives."""
    try:
        counted = LedgerCounts.from_counters(evidence.counters)
    except ValueError as error:
        yield Discrepancy("ledger", f"its counters cannot be read: {str(error).splitlines()[0]}")
        return
    if not counted.balanced:
        yield Discrepancy(
            "ledger",
            f"its counters do not balance: issued {counted.issued} is not committed {counted.committed} + dropped "
            f"{counted.dropped} + rolled_back {counted.rolled_back} + in_flight {counted.in_flight}",
        )
    skipped = sum(entry.skipped for entry in evidence.steps.values())
    unsealed = recount(evidence.attempts.values(), skipped_steps=skipped, duplicates_refused=counted.duplicates_refused)
    real = total((evidence.sealed.index.counts(), unsealed)).as_counters()
    said = counted.as_counters()
    for name in sorted(set(real) | set(said)):
        if said.get(name, "0") != real.get(name, "0"):
            yield Discrepancy(
                "ledger", f"counter {name} is {said.get(name, '0')}, a recount gives {real.get(name, '0')}"
            )


def steps(evidence: Evidence) -> Iterator[Discrepancy]:
    """Steps 0..N-1 are all there, each with exactly its number of attempts, each of them committed at it."""
    listed: dict[Key, list[int]] = defaultdict(list)
    sealed = evidence.sealed
    known = {*evidence.steps, *sealed.steps}
    for gap in gaps(known, start=sealed.first_step, end=evidence.num_steps) if sealed.whole else ():
        yield Discrepancy("ledger", f"step {gap}: missing, though {evidence.num_steps} steps were committed")
    for step, entry in sorted(evidence.steps.items()):
        if step >= evidence.num_steps:
            yield Discrepancy("ledger", f"is there, but only {evidence.num_steps} steps were committed", step)
        if len(entry.batch) != evidence.tickets_per_step:
            yield Discrepancy("ledger", f"has {len(entry.batch)} attempts and not {evidence.tickets_per_step}", step)
        for key in entry.batch:
            listed[key].append(step)
            attempt = evidence.find(key)
            if attempt is None and key[0] < sealed.end and not sealed.whole:
                continue
            if attempt is None:
                yield Discrepancy("ledger", "in the step's batch, but there is no such attempt", step, *key)
            elif (attempt.state, attempt.step, attempt.epoch) != ("committed", step, entry.epoch):
                yield about(attempt, f"in the step's batch, but it is {state_of(attempt)}", step=step)
    for key, among in listed.items():
        if len(among) > 1:
            yield Discrepancy("ledger", f"in the batches of steps {among}", among[-1], *key)
    for key, attempt in (*sealed.partial.items(), *evidence.attempts.items()):
        if attempt.state == "committed" and attempt.step not in listed.get(key, ()):
            yield about(attempt, "committed, but not in the step's batch")


def lag(evidence: Evidence) -> Iterator[Discrepancy]:
    """0 <= step - version <= max_policy_lag for every committed attempt."""
    for attempt in evidence.attempts.values():
        if attempt.state == "committed":
            wrong = lag_outside(attempt.step, attempt.version, evidence.max_policy_lag)
            if wrong:
                yield about(attempt, wrong)
