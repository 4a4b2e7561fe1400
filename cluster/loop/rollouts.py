"""Rollouts from ticket to batch: issued, produced, scored, queued, cut into batches, or dropped and made again. Keeps
flow control and the ledger's attempts in step; must never know how steps are learnt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.errors import EnvFailure, ExpertFailure, RollcallError
from rollcall.cluster.loop.accounts import Counters
from rollcall.cluster.loop.attempts import Attempts, Key
from rollcall.cluster.loop.flow import FlowControl, Ready
from rollcall.cluster.loop.observers import Observers
from rollcall.cluster.loop.run import RunPlan
from rollcall.cluster.loop.supervision import FailureBudget
from rollcall.cluster.loop.task_source import TaskSource
from rollcall.cluster.messages.attempt import Header, Produced, Ticket
from rollcall.cluster.messages.events import (
    Event,
    Fault,
    Handle,
    StateLost,
    TicketFailed,
    TicketProduced,
    TicketRefused,
    TicketScored,
    VersionMade,
    Workers,
)
from rollcall.cluster.seeds import derive_seed

MAX_DEGENERATE_BATCHES = 20  # batches' worth of prompts without one to learn from, after which the run is hopeless

# Drops after which a run would only meet the same again.
_FATAL: dict[str, type[RollcallError]] = {"env_failed": EnvFailure, "expert_failed": ExpertFailure}

Rollout = tuple[Produced, Handle]
Batch = tuple[Ready[Rollout], ...]


class Rollouts:
    """Of one epoch."""

    def __init__(
        self,
        plan: RunPlan,
        *,
        tasks: TaskSource,
        workers: Workers,
        ledger: Ledger,
        observers: Observers,
        failures: FailureBudget,
        counters: Counters,
        epoch: int,
        version: int,
        again: Iterable[Key] = (),
    ) -> None:
        """`version`: learner steps consumed before; `again`: attempts that a restore wants issued first."""
        self._plan = plan
        self._tasks = tasks
        self._workers = workers
        self._observers = observers
        self._failures = failures
        self._counters = counters
        self._epoch = epoch
        self._attempts = Attempts(ledger, counters, again)
        self.flow: FlowControl[Rollout] = FlowControl(
            tickets_per_step=plan.tickets_per_step,
            max_policy_lag=plan.max_policy_lag,
            total_learner_steps=plan.total_learner_steps,
            version=version,
            on_stale=plan.on_stale,
        )
        self._degenerate_in_a_row = 0
        self._early: list[tuple[Key, int]] = []  # issued, and the version that each waits for
        self._withdrawn = False

    @property
    def num_acting(self) -> int:
        """Tickets with the actors."""
        return max(0, self.flow.num_in_flight - self.num_being_scored - len(self._early))

    @property
    def num_being_scored(self) -> int:
        return self._attempts.num_being_scored

    @property
    def at_rest(self) -> bool:
        """Whether nothing is with the actors, nor waits for a batch."""
        return self.flow.num_in_flight == 0 and self.flow.num_ready == 0

    def issue(self, *, ahead: bool) -> None:
        """All tickets that may be issued now; `ahead`: also those of the version in the making, which are booked here
        and submitted once it is made."""
        keys: list[Key] = []
        while self.flow.may_issue(ahead=ahead):
            key = self._attempts.next()
            self._early.append((key, self.flow.issued(key[0])))
            keys.append(key)
        if keys:
            self._attempts.issue(keys)
            self.submit(self.flow.version)

    def withdraw(self) -> None:
        """Nobody works on what was not submitted yet: the run stops."""
        self._withdrawn = True

    def submit(self, version: int) -> None:
        """What waits for this version, which is made."""
        if self._withdrawn:
            return
        due = [self._ticket(key, waits_for) for key, waits_for in self._early if waits_for <= version]
        if due:
            self._early = [(key, waits_for) for key, waits_for in self._early if waits_for > version]
            self._workers.submit_tickets(due)

    def _ticket(self, key: Key, version: int) -> Ticket:
        ticket_id, attempt = key
        lane, payload = self._tasks.assign(ticket_id)  # only now: an env shard may have been lost since it was issued
        return Ticket(
            header=Header(ticket_id, attempt, self._epoch, self._plan.policy_id),
            seed=derive_seed(self._plan.run_seed, "ticket", ticket_id),
            min_policy_version=version,
            lane=lane,
            payload=payload,
            deadline_s=self._plan.ticket_deadline_s,
        )

    def cut(self) -> Batch:
        """The next batch; empty where a step has to wait."""
        cut = self.flow.cut()
        if cut is None:
            return ()
        for ready in cut.stale:
            self._drop((ready.ticket_id, ready.attempt), "stale")
        return cut.batch

    def commit(self, step: int, batch: Batch, *, skipped: bool) -> None:
        """The oldest batch that was cut is learnt from."""
        self._degenerate_in_a_row = 0
        self._attempts.commit(step, [(ready.ticket_id, ready.attempt) for ready in batch], skipped=skipped)
        self.flow.consumed()
        self.submit(self.flow.version)

    def stop(self) -> frozenset[int]:
        """Drops what a stop leaves in flight, queued or in training; a resume issues it again. Returns its tickets."""
        undone = self._attempts.stop()
        for ticket_id in undone:
            self.flow.dropped(ticket_id)
        return undone

    # What becomes of a ticket.

    def awaits(self, header: Header) -> bool:
        """Whether an attempt is in flight: not late, not given up, not of an epoch that has ended."""
        is_current = header.epoch == self._epoch and self._attempts.is_current(header.key)
        return is_current and self.flow.is_in_flight(header.ticket_id)

    def took(self, events: Sequence[Event]) -> bool:
        """Events of one kind, in their order; whether they are about tickets. What comes together is booked so."""
        if produced := [event for event in events if isinstance(event, TicketProduced)]:
            self.on_produced(produced)
        elif scored := [event for event in events if isinstance(event, TicketScored)]:
            self.on_scored(scored)
        else:
            for event in events:
                if isinstance(event, TicketFailed | TicketRefused):
                    self.on_failed(event)
                elif isinstance(event, VersionMade):
                    if event.epoch == self._epoch:
                        self.submit(event.version)
                elif isinstance(event, StateLost):
                    for ticket_id in event.ticket_ids:
                        self._tasks.lost(ticket_id)
                else:
                    return False
        return True

    def on_produced(self, events: Sequence[TicketProduced]) -> None:
        accepted: dict[Key, TicketProduced] = {}
        for event in events:
            header = event.produced.header
            if header.key in accepted or not self.awaits(header) or self._attempts.is_being_scored(header.key):
                self._attempts.refuse(header.key)
            elif event.produced.min_policy_version < self.flow.issued_under(header.ticket_id):
                # Acted with older weights than it was to be: room in a batch was kept for no such, and each would wait.
                self._drop(header.key, "stale")
            else:
                accepted[header.key] = event
        self._attempts.produced(
            [(key, event.produced.min_policy_version) for key, event in accepted.items()], to_score=self._plan.scored
        )
        for event in accepted.values():
            if self._plan.scored:
                self._workers.submit_scoring(event.produced, event.handle)
            else:
                self._queue(event.produced, event.handle)

    def on_scored(self, events: Sequence[TicketScored]) -> None:
        accepted: dict[Key, TicketScored] = {}
        for event in events:
            header = event.produced.header
            if header.key in accepted or not self.awaits(header) or not self._attempts.is_being_scored(header.key):
                self._attempts.refuse(header.key)
            else:
                accepted[header.key] = event
        self._attempts.scored(accepted)
        for event in accepted.values():
            self._queue(event.produced, event.handle)

    def on_failed(self, event: TicketFailed | TicketRefused) -> None:
        """Raises EnvFailure: an env's budget of restarts is spent; ExpertFailure: an expert has none."""
        header = event.header
        if isinstance(event, TicketRefused):
            self._attempts.refuse(header.key)
            return
        if not self.awaits(header):
            return
        if event.state_lost:
            self._tasks.lost(header.ticket_id)
        if event.reason in _FATAL:
            self.flow.dropped(header.ticket_id)
            self._attempts.give_up(header.key, event.reason)
            raise _FATAL[event.reason](event.detail)
        self._drop(header.key, event.reason, event.fault)

    def _queue(self, produced: Produced, handle: Handle) -> None:
        """What may be learnt from."""
        self._failures.came_through()
        self.flow.produced(*produced.header.key, produced.min_policy_version, (produced, handle))
        if self._plan.drop_degenerate and produced.is_degenerate:
            self._drop_degenerate(produced.header.key)

    def _drop(self, key: Key, reason: str, fault: Fault = "own") -> None:
        self.flow.dropped(key[0])
        if times := self._attempts.failed(key, reason, fault):
            text = f"ticket {key[0]}: failed {times} times, last: {reason}"
            self._observers.on_event("attempts_exhausted", text)

    def _drop_degenerate(self, key: Key) -> None:
        """Books a group that teaches nothing as done with; the next prompt takes its place."""
        self.flow.dropped(key[0])
        self._attempts.give_up(key, "degenerate")
        self._counters.degenerate += 1
        self._degenerate_in_a_row += 1
        limit = MAX_DEGENERATE_BATCHES * self._plan.tickets_per_step
        if self._degenerate_in_a_row > limit:
            raise RollcallError(
                f"the last {limit} prompts gave groups whose rewards are all equal: there is nothing to learn from; "
                "the task is too easy or too hard for the policy (or set algorithm.dynamic_sampling=false)"
            )
