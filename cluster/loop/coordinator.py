"""The one loop: issues tickets, cuts batches, has them learned from, publishes, commits, checkpoints. The driver's
process runs it, and only it writes the ledger. It must never know what is in a trajectory, nor which runtime works."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from rollcall.cluster.books.consumption import newest_epoch
from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.books.ledger_position import LedgerPosition
from rollcall.cluster.books.ledger_restore import RestorePlan
from rollcall.cluster.checkpoint import CheckpointWriter, Manifest, Tier, latest_checkpoint, write_state
from rollcall.cluster.errors import EnvFailure, RollcallError
from rollcall.cluster.loop.accounts import Counters
from rollcall.cluster.loop.attempts import MAX_ATTEMPTS, Attempts
from rollcall.cluster.loop.flow import FlowControl, Ready
from rollcall.cluster.loop.plan import Plan
from rollcall.cluster.loop.run_state import RunState
from rollcall.cluster.loop.supervision import FailureBudget, Watchdog
from rollcall.cluster.loop.work import Work
from rollcall.cluster.messages.attempt import Header, Produced, Ticket
from rollcall.cluster.messages.events import (
    EvalDone,
    Event,
    Handle,
    LearnerLost,
    StateLost,
    StepDone,
    TicketFailed,
    TicketProduced,
    TicketScored,
    Workers,
)
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.seeds import derive_seed

POLL_S = 0.2  # how soon a stop is noticed when nothing else happens
MAX_DEGENERATE_BATCHES = 20  # batches' worth of prompts without one to learn from, after which the run is hopeless


class Recorder(Protocol):
    """Somebody who watches the run: a file, a terminal, a metrics endpoint."""

    def on_step(self, record: dict[str, Any]) -> None: ...

    def on_eval(self, record: dict[str, Any]) -> None: ...
    def on_event(self, kind: str, text: str) -> None: ...


class Coordinator:
    """Runs one run from wherever it is to its end."""

    def __init__(
        self,
        plan: Plan,
        *,
        work: Work,
        workers: Workers,
        ledger: Ledger,
        checkpoints: CheckpointWriter,
        recorders: Sequence[Recorder],
        watchdog: Watchdog,
        failures: FailureBudget,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.plan = plan
        self.counters = Counters()
        self._work = work
        self._workers = workers
        self._ledger = ledger
        self._checkpoints = checkpoints
        self._recorders = recorders
        self._watchdog = watchdog
        self._failures = failures
        self._stop_requested = stop_requested
        self._epoch = 0
        self._flow: FlowControl[tuple[Produced, Handle]] = self._new_flow(0)
        self._attempts = Attempts(ledger, self.counters)
        self._training: deque[tuple[StepOrder, tuple[Ready[tuple[Produced, Handle]], ...]]] = deque()
        self._last_checkpoint_step = -1
        self._last_checkpoint_unix_s = 0.0
        self._last_step_at = time.perf_counter()
        self._earlier_restarts = 0  # of the drivers before this one
        self._learner_restarts = 0
        self._told_unfinished = False
        self._degenerate_in_a_row = 0
        self._stopping = False
        self._learner_gone = False  # it died while the run was being stopped

    # Beginning: afresh, or from a checkpoint.

    def begin(self) -> int:
        """A new run. Returns its epoch."""
        self._epoch = self._ledger.open_epoch()
        return self._epoch

    def resume(self, manifest: Manifest) -> int:
        """Makes the checkpoint's state the run's: the books are reconciled, what was in flight is issued again.
        Returns the new epoch."""
        position = LedgerPosition.model_validate(manifest.ledger)
        restore: RestorePlan = self._ledger.restore(position, above_epoch=newest_epoch(self.plan.consumption_log))
        self.counters = Counters(**manifest.driver["counters"])
        if not self._epoch:  # otherwise only the learner was lost, and the actors live on
            self._earlier_restarts = self.counters.restarts
            self._work.load_state(manifest.driver["work"])
            if manifest.tier != "exact":
                self._work.all_lost()
        self._epoch = restore.epoch
        self._flow = self._new_flow(manifest.step)
        self.counters.next_ticket_id = restore.next_ticket_id
        self._attempts = Attempts(self._ledger, self.counters, restore.reissue)
        self._training.clear()
        self._checkpoints.discard_after(manifest.step)
        self._last_checkpoint_step = manifest.step
        self._last_checkpoint_unix_s = time.time()  # from now on there is something to lose again
        return self._epoch

    @property
    def step(self) -> int:
        """Learner steps consumed."""
        return self._flow.version

    @property
    def restarts(self) -> int:
        """Processes started again over the whole run."""
        return self._earlier_restarts + self._learner_restarts + self._workers.restarts

    def state(self) -> RunState:
        """For whoever watches, on any thread."""
        scoring = self._attempts.num_being_scored
        return RunState(
            progress=self._progress(self.step),
            tickets_per_step=self.plan.tickets_per_step,
            max_policy_lag=self.plan.max_policy_lag,
            acting=max(0, self._flow.num_in_flight - scoring),
            scoring=scoring,
            queued=self._flow.num_ready,
            training=self.plan.tickets_per_step * len(self._training),
            checkpoint_step=self._last_checkpoint_step,
            checkpoint_unix_s=self._last_checkpoint_unix_s,
            restarts={**self._workers.restarts_by_role, "learner": self._learner_restarts},
        )

    @property
    def finished(self) -> bool:
        if self.plan.total_learner_steps is not None:
            return self._flow.version >= self.plan.total_learner_steps
        return self.counters.env_steps >= (self.plan.total_env_steps or 0)

    # The loop.

    def run(self) -> None:
        """Until the run is finished or a stop is requested; then what is under way is discarded, and the step boundary
        before it is written down."""
        self._last_step_at = time.perf_counter()
        self._watchdog.progressed()  # however long it took to start everybody
        while not self.finished and not self._stop_requested():
            self._issue_tickets()
            self._begin_steps()
            self._poll()
        if not self.finished:
            self._interrupt()
        at_boundary = not self._training
        undone = self._drop_leftovers()
        if at_boundary and self._last_checkpoint_step != self.step:
            self.checkpoint_now(undone)

    def _poll(self) -> None:
        self._handle(self._workers.poll(POLL_S))
        warning = self._watchdog.check(self._waiting_for)
        if warning:
            self._tell("stalled", warning)

    def _interrupt(self) -> None:
        """The learner takes back what it has not finished, and stands at a step boundary; if it cannot in time, or
        dies, the last checkpoint is what a resume goes on from."""
        self._stopping = True
        deadline = time.monotonic() + self.plan.stop_patience_s
        if self._training:
            self._workers.interrupt_learner()
        while self._training and not self._learner_gone and time.monotonic() < deadline:
            self._poll()
        if self._training:
            self._tell("stopping", f"the learner is not at a step boundary: step {self._last_checkpoint_step} stands")

    def wait_for_evals(self, timeout_s: float, pending: Callable[[], bool]) -> None:
        """Handles events until no evaluation is pending any more."""
        deadline = time.monotonic() + timeout_s
        while pending() and time.monotonic() < deadline:
            self._handle(self._workers.poll(0.5))
        if pending():
            self._tell("eval_failed", f"no result within {timeout_s:.0f} s: ask for fewer or shorter episodes (eval.*)")

    def checkpoint_now(self, undone: Collection[int] = ()) -> None:
        """A checkpoint of this step boundary, before the tickets `undone`; nothing may be in training. An exact one, or
        none where the last was exact: going on from that gives the same run."""
        assert not self._training
        directory = self._checkpoints.begin(self.step)
        self._workers.save_learner(directory, epoch=self._epoch, version=self.step)
        self._finish_checkpoint(directory, undone)

    def _new_flow(self, version: int) -> FlowControl[tuple[Produced, Handle]]:
        return FlowControl(
            tickets_per_step=self.plan.tickets_per_step,
            max_policy_lag=self.plan.max_policy_lag,
            total_learner_steps=self.plan.total_learner_steps,
            version=version,
            on_stale=self.plan.on_stale,
        )

    def _issue_tickets(self) -> None:
        tickets: list[Ticket] = []
        while self._flow.may_issue():
            ticket_id, attempt = self._attempts.next()
            lane, payload = self._work.assign(ticket_id)
            tickets.append(
                Ticket(
                    header=Header(ticket_id, attempt, self._epoch, self.plan.policy_id),
                    seed=derive_seed(self.plan.run_seed, "ticket", ticket_id),
                    min_policy_version=self._flow.issued(ticket_id),
                    lane=lane,
                    payload=payload,
                    deadline_s=self.plan.ticket_deadline_s,
                )
            )
        if tickets:
            self._attempts.issue([ticket.header.key for ticket in tickets])
            self._workers.submit_tickets(tickets)

    def _begin_steps(self) -> None:
        while len(self._training) <= self.plan.prefetch_steps:
            cut = self._flow.cut()
            if cut is None:
                return
            for ready in cut.stale:
                self._workers.release(ready.handle[1])
                self._drop((ready.ticket_id, ready.attempt), "stale")
            if not cut.batch:
                return
            step = self._flow.next_step - 1
            directory = self._checkpoints.begin(step + 1) if self._checkpoint_due(step + 1) else None
            order = StepOrder(step, self._epoch, self._progress(step), directory)
            self._training.append((order, cut.batch))
            self._workers.submit_step(order, [ready.handle[1] for ready in cut.batch])

    def _handle(self, events: Sequence[Event]) -> None:
        causes = self._tell_failures([event for event in events if isinstance(event, TicketFailed)])
        for event in events:
            if isinstance(event, TicketProduced | TicketScored | StepDone | EvalDone):
                self._watchdog.progressed()
            if isinstance(event, TicketProduced):
                self._on_produced(event)
            elif isinstance(event, TicketScored):
                self._on_scored(event)
            elif isinstance(event, TicketFailed):
                self._on_failed(event)
            elif isinstance(event, StateLost):
                for ticket_id in event.ticket_ids:
                    self._work.lost(ticket_id)
            elif isinstance(event, StepDone) and event.report.interrupted:
                self._on_interrupted(event)
            elif isinstance(event, StepDone):
                self._on_step_done(event)
            elif isinstance(event, LearnerLost):
                self._on_learner_lost(event)
            else:
                self._on_eval(event)
        if not (self._stopping or self.finished):  # what fails then ends no run
            for event in causes:
                self._failures.failed(event.reason, event.detail, fruitless=event.fruitless)

    def _on_produced(self, event: TicketProduced) -> None:
        produced = event.produced
        if not self._is_awaited(produced.header) or self._attempts.is_being_scored(produced.header.key):
            self._refuse(event)
            return
        self._attempts.produced(produced.header.key, produced.min_policy_version, to_score=self.plan.scored)
        if self.plan.scored:
            self._workers.submit_scoring(produced, event.handle)
        else:
            self._queue(produced, event.handle)

    def _on_scored(self, event: TicketScored) -> None:
        produced = event.produced
        if not self._is_awaited(produced.header) or not self._attempts.is_being_scored(produced.header.key):
            self._refuse(event)
            return
        self._attempts.scored(produced.header.key)
        self._queue(produced, event.handle)

    def _refuse(self, event: TicketProduced | TicketScored) -> None:
        self._workers.release(event.handle)
        self._attempts.refuse(event.produced.header.key)

    def _queue(self, produced: Produced, handle: Handle) -> None:
        """What may be learnt from."""
        self._failures.came_through()
        self._flow.produced(*produced.header.key, produced.min_policy_version, (produced, handle))
        if self.plan.drop_degenerate and produced.is_degenerate:
            self._drop_degenerate(produced, handle)

    def _drop_degenerate(self, produced: Produced, handle: Handle) -> None:
        """Books a group that teaches nothing as done with; the next prompt takes its place."""
        self._flow.dropped(produced.header.ticket_id)
        self._workers.release(handle)
        self._attempts.give_up(produced.header.key, "degenerate")
        self.counters.degenerate += 1
        self._degenerate_in_a_row += 1
        limit = MAX_DEGENERATE_BATCHES * self.plan.tickets_per_step
        if self._degenerate_in_a_row > limit:
            raise RollcallError(
                f"the last {limit} prompts gave groups whose rewards are all equal: there is nothing to learn from; "
                "the task is too easy or too hard for the policy (or set algorithm.dynamic_sampling=false)"
            )

    def _is_awaited(self, header: Header) -> bool:
        """Whether an attempt is in flight: not late, not given up, not of an epoch that has ended."""
        known = header.epoch == self._epoch and self._attempts.is_current(header.key)
        return known and self._flow.is_in_flight(header.ticket_id)

    def _on_failed(self, event: TicketFailed) -> None:
        key = event.header.key
        if not self._is_awaited(event.header):
            return
        if event.state_lost:
            self._work.lost(event.header.ticket_id)
        if event.reason == "env_failed":
            self._flow.dropped(event.header.ticket_id)
            self._attempts.give_up(key, "env_failed")
            raise EnvFailure(event.detail)
        self._drop(key, event.reason)

    def _tell_failures(self, events: Sequence[TicketFailed]) -> list[TicketFailed]:
        """One line for all tickets that one cause took. Returns the first of each cause."""
        causes: dict[tuple[str, str], list[TicketFailed]] = {}
        for event in events:
            if self._is_awaited(event.header):
                causes.setdefault((event.reason, event.detail), []).append(event)
        for (reason, detail), lost in causes.items():
            first = f"ticket {lost[0].header.ticket_id} attempt {lost[0].header.attempt}"
            others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            self._tell(reason, f"{first}{others}: {detail}")
        return [lost[0] for lost in causes.values()]

    def _drop(self, key: tuple[int, int], reason: str) -> None:
        self._flow.dropped(key[0])
        if self._attempts.failed(key, reason):
            self._tell("attempts_exhausted", f"ticket {key[0]}: failed {MAX_ATTEMPTS} times, last: {reason}")

    def _on_step_done(self, event: StepDone) -> None:
        """Order: publish, then commit, then checkpoint."""
        report = event.report
        if report.epoch != self._epoch:
            return
        self._degenerate_in_a_row = 0
        order, batch = self._training.popleft()
        assert report.step == order.step
        published = time.perf_counter()
        self._workers.publish(event.weights)
        publish_s = time.perf_counter() - published
        self._attempts.commit(order.step, [(r.ticket_id, r.attempt) for r in batch], skipped=report.skipped)
        self._flow.consumed()
        now = time.perf_counter()
        step_s, self._last_step_at = now - self._last_step_at, now
        self.counters.restarts = self.restarts
        produced = [ready.handle[0] for ready in batch]
        record = self.counters.count(order, produced, report, publish_s=publish_s, step_s=step_s)
        for ready in batch:
            self._workers.release(ready.handle[1])
        if report.skipped:
            self._tell("skipped", f"step {order.step}: the loss or a gradient was not finite; step taken back")
        for recorder in self._recorders:  # before the checkpoint: what it holds has been told, whenever we are killed
            recorder.on_step(record)
        if order.checkpoint_directory is not None:
            self._finish_checkpoint(order.checkpoint_directory)
        every = self.plan.eval_every_steps
        if every is not None and self.step % every == 0 and not self.finished:
            self._workers.submit_eval(step=self.step, env_steps=self.counters.env_steps)

    def _on_interrupted(self, event: StepDone) -> None:
        """Its tickets are live still, and dropped with all others that a stop leaves."""
        if event.report.epoch != self._epoch:
            return
        order, batch = self._training.popleft()
        self._flow.given_up()
        if order.checkpoint_directory is not None:
            self._checkpoints.give_up(order.checkpoint_directory)
        for ready in batch:
            self._workers.release(ready.handle[1])

    def _on_learner_lost(self, event: LearnerLost) -> None:
        """Back to the last checkpoint: what was in training or in flight is booked and issued again."""
        self._tell("learner_lost", event.detail)
        if self._stopping:  # a resume does what would be done now
            self._learner_gone = True
            return
        checkpoint, manifest, warnings = latest_checkpoint(self._checkpoints.run_directory)
        for warning in warnings:
            self._tell("checkpoint_damaged", warning)
        for _, batch in self._training:
            for ready in batch:
                self._workers.release(ready.handle[1])
        epoch = self.resume(manifest)
        self._learner_restarts += 1
        for recorder in self._recorders:
            recorder.on_event("restored", f"step {manifest.step}")
        self._workers.restart_learner(checkpoint, epoch=epoch, version=manifest.step, detail=event.detail)
        self._watchdog.progressed()  # however long that took

    def _on_eval(self, event: EvalDone) -> None:
        report = event.report
        if report is None:
            self._tell("eval_failed", event.error)
            return
        record = {
            "step": event.step,
            "env_steps": event.env_steps,
            "tokens": self.counters.tokens,
            "policy_version": event.step,
            "mean": report.mean,
            "std": report.std,
            "n": report.n,
            "unit": report.unit,
        }
        if report.unfinished is not None:
            record["unfinished"] = report.unfinished
        if report.unfinished and not self._told_unfinished:
            self._told_unfinished = True
            self._tell(
                "eval_unfinished",
                f"{report.unfinished} of {report.n} episodes had not ended after {max(report.lengths)} steps, and "
                "their returns are of so many: give episodes an end (env.max_episode_steps), or say when evaluation is "
                "to leave them (eval.max_steps_per_episode)",
            )
        for recorder in self._recorders:
            recorder.on_eval(record)

    def _progress(self, step: int) -> float:
        if self.plan.total_learner_steps is not None:
            return step / self.plan.total_learner_steps
        return min(1.0, self.counters.env_steps / (self.plan.total_env_steps or 1))

    def _checkpoint_due(self, step: int) -> bool:
        return step % self.plan.checkpoint_every_steps == 0 or step == self.plan.total_learner_steps

    def _finish_checkpoint(self, directory: Path, undone: Collection[int] = ()) -> None:
        tier: Tier = "resumable"
        if self.plan.exact_checkpoints and self._flow.num_in_flight == 0 and self._flow.num_ready == 0:
            states = self._workers.shard_states(undone)
            if states is not None:
                write_state(directory, "shards", *states)
                tier = "exact"
            elif undone:
                self._checkpoints.give_up(directory)
                self._tell("stopping", f"no exact state of step {self.step}: step {self._last_checkpoint_step} stands")
                return
        position = self._ledger.snapshot(step=self.step, next_ticket_id=self.counters.next_ticket_id)
        manifest = Manifest(
            run_id=self.plan.run_id,
            policy_id=self.plan.policy_id,
            config_hash=self.plan.config_hash,
            step=self.step,
            epoch=self._epoch,
            tier=tier,
            ledger=position.model_dump(mode="json"),
            driver={"counters": self.counters.as_json(), "work": self._work.state()},
            files={},
        )
        self._checkpoints.finish(directory, manifest)
        self._last_checkpoint_step, self._last_checkpoint_unix_s = self.step, time.time()
        self._tell("checkpoint", f"step {self.step} ({tier})")

    def _drop_leftovers(self) -> frozenset[int]:
        """Drops what a stop leaves in flight, queued or in training; a resume issues it again. Returns its tickets."""
        undone = self._attempts.stop()
        for ticket_id in undone:
            ready = self._flow.dropped(ticket_id)
            if ready is not None:
                self._workers.release(ready.handle[1])
        return undone

    def _waiting_for(self) -> str:
        if self._training:
            return f"learner step {self._training[0][0].step}; " + self._workers.waiting_for()
        blocked = self._flow.blocked_by()[:4]
        return f"tickets {blocked} (ready {self._flow.num_ready}); " + self._workers.waiting_for()

    def _tell(self, kind: str, text: str) -> None:
        for recorder in self._recorders:
            recorder.on_event(kind, text)
