"""The audit of what is sealed: a segment at a time, by numpy, held against the consumption log and the checkpoints.
What is not evidently right goes to the rules that judge the rest of the books, as records, so that both say the same
in the same words. Memory is that of a few segments, however long the run was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from rollcall.cluster.books import audit_rules, audit_witnesses
from rollcall.cluster.books.audit_evidence import Discrepancy, Evidence, SealedFacts, about, gaps
from rollcall.cluster.books.audit_lines import LogStream
from rollcall.cluster.books.columns import COMMITTED, DROPPED, ROLLED_BACK, AttemptColumns
from rollcall.cluster.books.consumption_line import LogReading
from rollcall.cluster.books.consumption_segment import FoldedLines
from rollcall.cluster.books.ledger_table import RESTORED, Attempt, Key, field_of
from rollcall.cluster.books.sealed import SealedIndex, Segment, segments_of
from rollcall.cluster.errors import BooksDamaged
from rollcall.cluster.messages.arrays import Array

SHOWN = 10  # tickets of a segment that are named; the others are counted
NEVER = np.iinfo(np.int64).max


class SealedAudit:
    """Of one run. `evidence`: of the rest of its books; of it, what is known of the run as a whole is used here."""

    def __init__(self, run_directory: Path, index: SealedIndex, evidence: Evidence, log: LogStream) -> None:
        self._directory = run_directory
        self._index = index
        self._evidence = evidence
        self._log = log
        self._epochs = np.array(sorted(evidence.epochs), np.int64)
        opened = np.array([evidence.epochs[epoch] for epoch in self._epochs.tolist()] + [NEVER], np.int64)
        self._lowest_after = np.minimum.accumulate(opened[::-1])[::-1]  # [E + 1] step to which a later epoch went back
        self._open = AttemptColumns()  # committed at steps that are not whole yet
        self._steps: set[int] = set()  # whole, beyond the first gap
        self._first_step = 0
        self._step_epochs: dict[int, tuple[int, int]] = {}
        self._max_lag = 0
        self._whole = True
        self._positions = dict(self._position_columns())

    def discrepancies(self, leftovers: Mapping[Key, Attempt]) -> Iterator[Discrepancy]:
        """Read to its end, after which `facts` are known. `leftovers`: sealed attempts that are in Redis still."""
        of_segment: dict[int, list[Attempt]] = defaultdict(list)
        ends = [segment.end for segment in self._index.segments]
        for attempt in leftovers.values():
            of_segment[int(np.searchsorted(ends, attempt.ticket_id, side="right"))].append(attempt)
        for number, segment in enumerate(segments_of(self._directory, self._index)):
            booked = self._index.segments[number]
            if isinstance(segment, BooksDamaged):
                self._whole = False
                yield Discrepancy("sealed books", str(segment).removeprefix(f"{self._directory}/"))
                self._log.below(booked.end)
                continue
            lines = self._log.below(segment.end)
            skipped = int(segment.skipped.sum())
            if segment.attempts.counts(skipped_steps=skipped) != booked.counts:
                yield Discrepancy(f"sealed books {segment.name}", "its attempts are not what the index has counted")
            if not self._in_order(segment):
                self._whole = False
                yield Discrepancy(f"sealed books {segment.name}", "its attempts are not those of its tickets, in order")
                continue
            yield from self._tickets(segment, lines)
            yield from self._against_redis(segment, of_segment[number])
            yield from self._against_checkpoints(segment)
            yield from self._steps_of(segment)

    def facts(self) -> SealedFacts:
        partial = {attempt.key: attempt for attempt in self._open.attempts()} if self._whole else {}
        return SealedFacts(
            index=self._index,
            partial=partial,
            first_step=self._first_step,
            steps=frozenset(self._steps),
            step_epochs=self._step_epochs,
            max_lag=self._max_lag,
            whole=self._whole,
        )

    # One segment.

    def _in_order(self, segment: Segment) -> bool:
        ticket, attempt = segment.attempts.ticket, segment.attempts.attempt
        if not len(ticket):
            return False
        later = (np.diff(ticket) > 0) | ((np.diff(ticket) == 0) & (np.diff(attempt) > 0))
        return bool(later.all()) and segment.first <= int(ticket[0]) and int(ticket[-1]) < segment.end

    def _tickets(self, segment: Segment, lines: FoldedLines) -> Iterator[Discrepancy]:
        attempts = segment.attempts
        new = np.diff(attempts.ticket, prepend=-1) != 0
        there = attempts.ticket[new]
        if len(there) != segment.end - segment.first:
            for gap in gaps(there.tolist(), start=segment.first, end=segment.end):
                yield Discrepancy("ledger", f"ticket {gap}: not in the ledger, though later ones are")
        bad_lines, matches = self._lines(segment, lines)
        wrong = self._wrong(attempts, new)
        if not self._log.damaged:
            wrong |= (attempts.state == COMMITTED) & (matches != 1)
        tickets = np.union1d(attempts.ticket[wrong], lines.ticket[bad_lines])
        for ticket in tickets[:SHOWN].tolist():
            found = list(self._of_ticket(ticket, attempts, lines))
            yield from found or [Discrepancy("ledger", "is sealed, but was not done with", ticket_id=ticket)]
        if len(tickets) > SHOWN:
            more = f"so are {len(tickets) - SHOWN} more tickets, of {segment.first} to {segment.end - 1}"
            yield Discrepancy(f"sealed books {segment.name}", more)
        committed = attempts.state == COMMITTED
        lags = (attempts.step - attempts.version)[committed]
        self._max_lag = max(self._max_lag, int(lags.max(initial=0)))

    def _wrong(self, attempts: AttemptColumns, new: Array) -> Array:
        """[N] whether an attempt is not evidently right in itself and beside the other attempts at its ticket."""
        starts = np.flatnonzero(new)
        nth = np.arange(len(new)) - np.repeat(starts, np.diff(starts, append=len(new))) + 1
        last = np.append(new[1:], True)
        committed = attempts.state == COMMITTED
        void = self._void(attempts.step, attempts.epoch)
        restored = np.array([reason == RESTORED for reason in attempts.reasons])[attempts.reason]
        lag = attempts.step - attempts.version
        rolled_back, dropped = attempts.state == ROLLED_BACK, attempts.state == DROPPED
        wrong = (attempts.attempt != nth) | ((attempts.final == 1) != last) | ~(committed | rolled_back | dropped)
        wrong |= ~np.isin(attempts.epoch, self._epochs)
        wrong |= committed & (void | (lag < 0) | (lag > self._evidence.max_policy_lag))
        wrong |= rolled_back & ~void
        newest = int(self._epochs[-1]) if len(self._epochs) else 0
        wrong |= dropped & restored & (attempts.epoch >= newest)
        return cast(Array, wrong)

    def _lines(self, segment: Segment, lines: FoldedLines) -> tuple[Array, Array]:
        """[L] lines that are not evidently right; [N] how many lines an attempt has at its step."""
        attempts = segment.attempts
        if not len(lines):
            return np.zeros(0, bool), np.zeros(len(attempts), np.int64)
        many = int(max(attempts.attempt.max(), lines.attempt.max())) + 1
        keys = (attempts.ticket - segment.first) * many + attempts.attempt
        wanted = (lines.ticket - segment.first) * many + lines.attempt
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = keys[at] == wanted
        void = self._void(lines.step, lines.epoch)
        state, step, epoch, version = attempts.state[at], attempts.step[at], attempts.epoch[at], attempts.version[at]
        yet = np.array([r in audit_witnesses.CONSUMED_YET_DROPPED for r in attempts.reasons])[attempts.reason[at]]
        fits = (state == COMMITTED) & (step == lines.step)
        fits |= (state == ROLLED_BACK) & void & (step == lines.step)
        fits |= (state == DROPPED) & (yet | void)
        fits &= (epoch == lines.epoch) & ((version < 0) | (version == lines.version))
        right = np.where(found, fits | (void & (epoch > lines.epoch)), void)
        lag = lines.step - lines.version
        right &= (lag >= 0) & (lag <= self._evidence.max_policy_lag)
        order = np.lexsort((lines.epoch, lines.step, wanted))
        same = np.ones(len(lines) - 1, bool)
        for array in (wanted, lines.step, lines.epoch):
            same &= np.diff(array[order]) == 0
        right[order[1:][same]] = False
        counted = found & ~void & (state == COMMITTED) & (lines.step == step)
        return ~right, np.bincount(at[counted], minlength=len(attempts))

    def _of_ticket(self, ticket: int, attempts: AttemptColumns, lines: FoldedLines) -> Iterator[Discrepancy]:
        """By the rules."""
        tries = {attempt.key: attempt for attempt in attempts.where(attempts.ticket == ticket).attempts()}
        said = LogReading(tuple(lines.where(lines.ticket == ticket).lines()), (), False)
        evidence = replace(self._evidence, attempts=tries, steps={}, log=said, log_whole=not self._log.damaged)
        if tries:
            yield from audit_rules.of_ticket(tries.values())
        for rule in (audit_rules.attempts, audit_rules.lag, audit_witnesses.consumption):
            yield from rule(evidence)

    def _steps_of(self, segment: Segment) -> Iterator[Discrepancy]:
        """Its steps are each listed once, with as many tickets as a step has, of its epoch."""
        committed = segment.attempts.where(segment.attempts.state == COMMITTED)
        known = AttemptColumns.joined([self._open, committed])
        order = np.argsort(segment.step, kind="stable")
        step, epoch = segment.step[order], segment.step_epoch[order]
        if len(step):
            at = np.minimum(np.searchsorted(step, known.step), len(step) - 1)
            inside = step[at] == known.step
            numbers = np.bincount(at[inside], minlength=len(step))
            others = np.bincount(at[inside & (epoch[at] != known.epoch)], minlength=len(step))
            per_step = self._evidence.tickets_per_step
            wrong = np.flatnonzero((numbers != per_step) | (others != 0))
            for i in wrong[:SHOWN].tolist() if self._whole else ():
                what = f"has {numbers[i]} attempts and not {per_step}" if numbers[i] != per_step else "is of two epochs"
                yield Discrepancy("ledger", what, int(step[i]))
            known = known.where(~inside)
        self._open = known
        for number in np.unique(epoch).tolist():
            of_it = step[epoch == number]
            first, last = self._step_epochs.get(number, (int(of_it[0]), -1))
            self._step_epochs[number] = (min(first, int(of_it[0])), max(last, int(of_it[-1])))
        for number in step.tolist():
            if number < self._first_step or number in self._steps:
                yield Discrepancy("ledger", "is sealed twice", number)
            self._steps.add(number)
        while self._first_step in self._steps:
            self._steps.remove(self._first_step)
            self._first_step += 1

    def _against_redis(self, segment: Segment, leftovers: Iterable[Attempt]) -> Iterator[Discrepancy]:
        """Of attempts that a killed driver has sealed and not yet taken out of Redis."""
        wanted = list(leftovers)
        if not wanted:
            return
        tickets = np.array([attempt.ticket_id for attempt in wanted])
        chosen = segment.attempts.where(np.isin(segment.attempts.ticket, tickets))
        sealed = {attempt.key: attempt for attempt in chosen.attempts()}
        for attempt in wanted:
            have = sealed.get(attempt.key)
            if have != attempt:
                found = "has no such attempt" if have is None else f"has {have.value}"
                yield about(attempt, f"is {attempt.value} in Redis, but {segment.name} {found}")

    def _against_checkpoints(self, segment: Segment) -> Iterator[Discrepancy]:
        for name, (first, end, columns) in self._positions.items():
            first, end = max(first, segment.first), min(end, segment.end)
            if first >= end:
                continue
            here, there = segment.attempts.between(first, end), columns.between(first, end)
            if here.same_as(there):
                continue
            sealed = {attempt.key: attempt for attempt in here.attempts()}
            told = {attempt.key: attempt for attempt in there.attempts()}
            for key in sorted(key for key in {*sealed, *told} if sealed.get(key) != told.get(key))[:SHOWN]:
                have, said = sealed.get(key), told.get(key)
                what = f"{said.value if said else 'not'} there, but sealed as {have.value if have else 'nothing'}"
                yield Discrepancy(f"checkpoint {name}", f"attempt {field_of(key)}: {what}")

    # What is known beforehand.

    def _void(self, step: Array, epoch: Array) -> Array:
        """As Evidence.void."""
        lowest: Array = self._lowest_after[np.searchsorted(self._epochs, epoch, side="right")]
        return lowest <= step

    def _position_columns(self) -> Iterator[tuple[str, tuple[int, int, AttemptColumns]]]:
        """What checkpoints have of tickets that were sealed since; of one that cannot be read the rules speak."""
        for name, position in self._evidence.checkpoints.items():
            if any(epoch > position.epoch and step < position.step for epoch, step in self._evidence.epochs.items()):
                continue
            first, end = position.sealed_below, min(position.low_water, self._index.end)
            if first >= end:
                continue
            try:
                columns = position.sealed.columns(first=first, most=position.counts.issued)
            except (ValueError, KeyError, TypeError):
                continue
            yield name, (first, end, columns)
