"""The ledger against the run's other witnesses: the learner's consumption log, metrics.jsonl, summary.json and the
checkpoints. Each rule is a function from the evidence to what is wrong. Must never take one witness' word alone."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from rollcall.cluster.books.audit_evidence import Discrepancy, Evidence, about, gaps, lag_outside, state_of
from rollcall.cluster.books.columns import AttemptColumns
from rollcall.cluster.books.consumption_line import Consumed
from rollcall.cluster.books.ledger_position import LedgerPosition
from rollcall.cluster.books.ledger_table import RESTORED, Attempt, Key, LedgerCounts, StepEntry, recount
from rollcall.cluster.books.sealed import SealedIndex, total
from rollcall.cluster.books.settings_history import SEGMENTS

# A trajectory may have been consumed although its attempt was dropped: the learner logs before the driver commits.
CONSUMED_YET_DROPPED = frozenset({RESTORED, "learner_died", "non_finite"})


def consumption(evidence: Evidence) -> Iterator[Discrepancy]:
    """Every committed attempt was consumed once, at its step, epoch and version; nothing else was, but what a restore
    or the learner's death has undone."""
    by_number = dict(evidence.log.lines)
    for number, problem in evidence.log.problems:
        known = by_number.get(number)
        of_line = (known.step, known.ticket_id, known.attempt) if known is not None else ()
        yield Discrepancy(f"consumption log line {number}", problem, *of_line)
    if evidence.log.torn and evidence.completed:
        yield Discrepancy("consumption log", "its last line has no end, though the run is completed")
    seen: Counter[Consumed] = Counter()
    consumed: dict[Key, list[Consumed]] = defaultdict(list)
    for number, line in evidence.log.lines:
        if evidence.alive and (line.step >= evidence.num_steps or line.epoch > max(evidence.epochs, default=0)):
            continue
        where = f"consumption log line {number}"
        seen[line] += 1
        if seen[line] > 1:
            yield Discrepancy(where, "stands in the log before", line.step, line.ticket_id, line.attempt)
            continue
        bounds = lag_outside(line.step, line.min_version, evidence.max_policy_lag)
        for wrong in (_line_against_ledger(evidence, line), bounds):
            if wrong:
                yield Discrepancy(where, wrong, line.step, line.ticket_id, line.attempt)
        if not evidence.void(line.step, line.epoch):
            consumed[line.ticket_id, line.attempt].append(line)
    for key, attempt in sorted(evidence.attempts.items()) if evidence.log_whole else ():
        if attempt.state != "committed":
            continue
        at = [line for line in consumed.get(key, ()) if line.step == attempt.step]
        if len(at) != 1:
            yield about(attempt, f"committed, but the consumption log has {len(at)} lines of it at this step and not 1")


def _line_against_ledger(evidence: Evidence, line: Consumed) -> str:
    """What is wrong with a line of the log; empty if nothing is."""
    attempt = evidence.attempts.get((line.ticket_id, line.attempt))
    void = evidence.void(line.step, line.epoch)
    if void and (attempt is None or attempt.epoch > line.epoch):
        return ""  # undone, and Redis had lost even that it was issued
    if attempt is None:
        return "consumed, but the ledger has no such attempt"
    if attempt.epoch != line.epoch:
        return f"consumed in epoch {line.epoch}, but the ledger has it in epoch {attempt.epoch}"
    if attempt.version >= 0 and attempt.version != line.min_version:
        return f"consumed with version {line.min_version}, but the ledger has version {attempt.version}"
    if attempt.state == "committed":
        return "" if attempt.step == line.step else f"consumed here, but committed at step {attempt.step}"
    if attempt.state == "rolled_back":
        fits = void and attempt.step == line.step
    elif attempt.state == "dropped":
        fits = attempt.reason in CONSUMED_YET_DROPPED or void
    else:
        killed_before_the_commit = line.step >= evidence.num_steps and not evidence.completed
        fits = killed_before_the_commit and attempt.state != "leased"
    return "" if fits else f"consumed, but in the ledger it is {state_of(attempt)}"


def metrics(evidence: Evidence) -> Iterator[Discrepancy]:
    """One line per learner step, in order; the last step of a killed run may lack its line."""
    expected = 0
    for record in evidence.metrics:
        step, epoch = record.get("step"), record.get("epoch")
        if not isinstance(step, int) or not isinstance(epoch, int):
            yield Discrepancy("metrics.jsonl", f"a line has step {step!r} and epoch {epoch!r}")
            continue
        if evidence.void(step, epoch) or (evidence.alive and step >= evidence.num_steps):
            continue
        if step != expected:
            yield Discrepancy("metrics.jsonl", f"stands where step {expected} is due", step)
        entry = evidence.steps.get(step)
        if entry is not None and entry.epoch != epoch:
            yield Discrepancy("metrics.jsonl", f"is of epoch {epoch}, but was committed in epoch {entry.epoch}", step)
        elif evidence.sealed.whole and evidence.sealed.has_step(step) and not evidence.sealed.fits(step, epoch):
            yield Discrepancy("metrics.jsonl", f"is of epoch {epoch}, which committed no such step", step)
        expected = step + 1
    missing = evidence.num_steps - expected
    if missing < 0 or missing > (0 if evidence.completed else 1):
        yield Discrepancy(
            "metrics.jsonl", f"ends before step {expected}, but {evidence.num_steps} steps were committed"
        )


def summary(evidence: Evidence) -> Iterator[Discrepancy]:
    """What summary.json says of the ledger, the steps and the lag is what the ledger says."""
    said = evidence.summary
    if said is None or evidence.alive:
        return
    if said.get("learner_steps") != evidence.num_steps:
        yield Discrepancy(
            "summary.json", f"learner_steps is {said.get('learner_steps')}, the ledger has {evidence.num_steps}"
        )
    lags = [attempt.step - attempt.version for attempt in evidence.attempts.values() if attempt.state == "committed"]
    lags.append(evidence.sealed.max_lag)
    told_lag = (said.get("policy_lag") or {}).get("max")
    if told_lag is not None and told_lag != max(lags, default=0):
        yield Discrepancy("summary.json", f"policy_lag.max is {told_lag}, the ledger has {max(lags, default=0)}")
    told = said.get("ledger")
    if told is None:
        return
    for name in ("issued", "committed", "dropped", "rolled_back", "in_flight", "duplicates_refused"):
        real = evidence.counters.get(name, "0")
        if str(told.get(name)) != real:
            yield Discrepancy("summary.json", f"ledger.{name} is {told.get(name)}, the ledger has {real}")


def checkpoints(evidence: Evidence) -> Iterator[Discrepancy]:
    """Every checkpoint's position is consistent in itself and, unless a restore has given it up, with the ledger."""
    for name, position in evidence.checkpoints.items():
        if evidence.alive and (position.step > evidence.num_steps or position.epoch > max(evidence.epochs, default=0)):
            continue
        where = f"checkpoint {name}"
        try:
            ended = position.ended(evidence.sealed.end)
            real = _recounted(position, evidence.sealed.index)
        except (ValueError, KeyError, TypeError) as error:
            yield Discrepancy(where, f"its ledger position cannot be read: {error}")
            continue
        if real != position.counts:
            what = f"its counts are ({position.counts}), its attempts amount to ({real})"
            yield Discrepancy(where, what)
        for what in _position_itself(position, ended, first=max(evidence.sealed.end, position.sealed_below)):
            yield Discrepancy(where, what)
        if any(epoch > position.epoch and step < position.step for epoch, step in evidence.epochs.items()):
            continue
        yield from _position_against_ledger(evidence, where, position, ended)


def segments(evidence: Evidence) -> Iterator[Discrepancy]:
    """Segments follow each other from step 0; every checkpoint was made under the settings of one that covers it."""
    known = evidence.segments
    if not known:
        return
    if known[0].step != 0:
        yield Discrepancy(SEGMENTS, f"the first segment begins at step {known[0].step}, not 0")
    for before, after in itertools.pairwise(known):
        if after.step < before.step:
            yield Discrepancy(
                SEGMENTS, f"a segment begins at step {after.step}, before the one it follows", before.step
            )
    if known[-1].step > evidence.num_steps and not evidence.alive:
        yield Discrepancy(
            SEGMENTS, f"a segment begins after the {evidence.num_steps} steps of the ledger", known[-1].step
        )
    ends: list[float] = [*(segment.step for segment in known[1:]), math.inf]
    for name, config_hash in evidence.checkpoint_hashes.items():
        step = int(name.removeprefix("step-"))
        if not any(s.config_hash == config_hash and s.step <= step <= end for s, end in zip(known, ends, strict=True)):
            text = f"made under settings ({config_hash[:12]}) that no segment has at step {step}"
            yield Discrepancy(f"checkpoint {name}", text)


def _recounted(position: LedgerPosition, index: SealedIndex) -> LedgerCounts:
    """What the attempts of a position amount to, those that it leaves to segments among them. Raises ValueError."""
    first, most = position.sealed_below, position.counts.issued
    unsealed = AttemptColumns.joined([h.columns(first=first, most=most) for h in (position.sealed, position.recent)])
    open_ones = recount(position.in_flight().values(), skipped_steps=len(position.skipped_steps), duplicates_refused=0)
    counted = total((index.counts(first), unsealed.counts(), open_ones))
    return counted.model_copy(update={"duplicates_refused": position.counts.duplicates_refused})


def _position_itself(position: LedgerPosition, ended: Mapping[Key, Attempt], *, first: int) -> Iterator[str]:
    done = {attempt.ticket_id for attempt in ended.values() if attempt.final}
    unfinished = {ticket for ticket, _, _ in position.open}
    for gap in gaps(done | unfinished, start=first, end=position.next_ticket_id):
        yield f"ticket {gap}: neither done with nor open, below next_ticket_id {position.next_ticket_id}"
    for ticket in sorted(done & unfinished):
        yield f"ticket {ticket}: both done with and open"
    for ticket in sorted(ticket for ticket in done | unfinished if ticket >= position.next_ticket_id):
        yield f"ticket {ticket}: known, though next_ticket_id is {position.next_ticket_id}"
    lowest = min(unfinished, default=position.next_ticket_id)
    if position.low_water != lowest:
        yield f"low_water is {position.low_water}, its open tickets make it {lowest}"


def _position_against_ledger(
    evidence: Evidence, where: str, position: LedgerPosition, ended: Mapping[Key, Attempt]
) -> Iterator[Discrepancy]:
    if position.tickets_per_step != evidence.tickets_per_step:
        yield Discrepancy(where, f"has {position.tickets_per_step} tickets per step, not {evidence.tickets_per_step}")
    if position.step > evidence.num_steps:
        yield Discrepancy(where, f"is of step {position.step}, but the ledger has {evidence.num_steps} steps")
    for epoch, step in position.epochs.items():
        opened = evidence.epochs.get(epoch)
        if opened != step:
            yield Discrepancy(where, f"has epoch {epoch} opened at step {step}, the ledger has it at {opened}")
    sealed = evidence.sealed
    entries = position.step_entries({**sealed.partial, **ended})
    for gap in gaps({*entries, *sealed.steps}, start=sealed.first_step, end=position.step) if sealed.whole else ():
        yield Discrepancy(where, f"step {gap}: no batch there, of {position.step} steps")
    for step in sorted(entries):
        if entries.get(step) != evidence.steps.get(step):
            yield Discrepancy(
                where, f"has {_batch(entries[step])} there, the ledger has {_batch(evidence.steps.get(step))}", step
            )
    for key, attempt in sorted(ended.items()):
        have = evidence.attempts.get(key)
        if have != attempt:
            found = "has no such attempt" if have is None else f"says {state_of(have)}"
            yield about(attempt, f"{state_of(attempt)} there, but the ledger {found}", where=where)
    for key, attempt in sorted(position.in_flight().items()):
        have = evidence.attempts.get(key)
        if have is None or have.epoch != attempt.epoch:
            yield about(attempt, f"{attempt.state} there, but not in the ledger", where=where)


def _batch(entry: StepEntry | None) -> str:
    return "no batch" if entry is None else f"the batch {entry.value}"
