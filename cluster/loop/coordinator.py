"""The one loop: issues tickets, cuts batches, has them learned from, commits, checkpoints. The driver's process runs
it, and only it writes the ledger. It waits in one place, `Workers.poll`."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby

from rollcall.cluster.books.consumption import newest_epoch
from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.books.ledger_position import LedgerPosition
from rollcall.cluster.checkpoint import CheckpointWriter, Manifest, latest_checkpoint
from rollcall.cluster.errors import RollcallError, StoreUnavailable
from rollcall.cluster.loop.accounts import Counters
from rollcall.cluster.loop.attempts import Key
from rollcall.cluster.loop.flow import FlowControl
from rollcall.cluster.loop.observers import Observers, RunObserver
from rollcall.cluster.loop.rollouts import Batch, Rollout, Rollouts
from rollcall.cluster.loop.run import RunPlan, RunState
from rollcall.cluster.loop.run_checkpoints import RunCheckpoints
from rollcall.cluster.loop.supervision import Clock, FailureBudget, Watchdog
from rollcall.cluster.loop.task_source import TaskSource
from rollcall.cluster.messages.events import (
    EvalDone,
    Event,
    LearnerLost,
    LearnerSaved,
    ShardStates,
    States,
    StepDone,
    TicketFailed,
    TicketProduced,
    TicketScored,
    Workers,
)
from rollcall.cluster.messages.reports import StepOrder

POLL_S = 0.2  # how soon a stop is noticed when nothing else happens


class Coordinator:
    """Runs one run from wherever it is to its end."""

    def __init__(
        self,
        plan: RunPlan,
        *,
        tasks: TaskSource,
        workers: Workers,
        ledger: Ledger,
        checkpoints: CheckpointWriter,
        observers: Sequence[RunObserver],
        watchdog: Watchdog,
        failures: FailureBudget,
        stop_requested: Callable[[], bool] = lambda: False,
        clock: Clock = time.monotonic,
    ) -> None:
        self.plan = plan
        self.counters = Counters()
        self._tasks = tasks
        self._workers = workers
        self._ledger = ledger
        self._checkpoints = RunCheckpoints(plan, checkpoints, ledger)
        self._observers = Observers(observers)
        self._watchdog = watchdog
        self._failures = failures
        self._stop_requested = stop_requested
        self._clock = clock
        self._epoch = 0
        self._rollouts = self._new_rollouts(0)
        self._training: deque[tuple[StepOrder, Batch]] = deque()
        self._last_step_at = self._clock()
        self._earlier_restarts = 0  # of the drivers before this one
        self._learner_restarts = 0
        self._stopping = False
        self._learner_gone = False  # it died while the run was being stopped

    # Beginning: afresh, or from a checkpoint.

    def begin(self) -> int:
        """A new run. Returns its epoch."""
        self._epoch = self._ledger.open_epoch()
        self._rollouts = self._new_rollouts(0)
        return self._epoch

    def resume(self, manifest: Manifest) -> int:
        """Makes the checkpoint's state the run's: the books are reconciled, what was in flight is issued again.
        Returns the new epoch."""
        position = LedgerPosition.model_validate(manifest.ledger)
        restore = self._ledger.restore(position, above_epoch=newest_epoch(self.plan.consumption_log))
        self.counters = Counters(**manifest.driver["counters"])
        if not self._epoch:  # otherwise only the learner was lost, and the actors live on
            self._earlier_restarts = self.counters.restarts
            self._tasks.load_state(manifest.driver["work"])
            if manifest.tier != "exact":
                self._tasks.all_lost()
        self._epoch = restore.epoch
        self.counters.next_ticket_id = restore.next_ticket_id
        self._rollouts = self._new_rollouts(manifest.step, restore.reissue)
        self._training.clear()
        self._checkpoints.back_at(manifest.step)
        return self._epoch

    def _new_rollouts(self, version: int, again: Iterable[Key] = ()) -> Rollouts:
        return Rollouts(
            self.plan,
            tasks=self._tasks,
            workers=self._workers,
            ledger=self._ledger,
            observers=self._observers,
            failures=self._failures,
            counters=self.counters,
            epoch=self._epoch,
            version=version,
            again=again,
        )

    @property
    def _flow(self) -> FlowControl[Rollout]:
        return self._rollouts.flow

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
        return RunState(
            progress=self.plan.progress(self.step, self.counters.env_steps),
            tickets_per_step=self.plan.tickets_per_step,
            max_policy_lag=self.plan.max_policy_lag,
            acting=self._rollouts.num_acting,
            scoring=self._rollouts.num_being_scored,
            queued=self._flow.num_ready,
            training=self.plan.tickets_per_step * len(self._training),
            checkpoint_step=self._checkpoints.step,
            checkpoint_unix_s=self._checkpoints.unix_s,
            restarts=Counter(self._workers.restarts_by_role) + Counter(learner=self._learner_restarts),
        )

    @property
    def finished(self) -> bool:
        return self.plan.is_finished(self.step, self.counters.env_steps)

    # The loop.

    def wait_for_workers(self) -> None:
        """Until all are there that the run begins with. Each has a deadline of its own; a stop ends the wait."""
        while not (self._workers.have_started or self._stop_requested()):
            self._handle(self._workers.poll(POLL_S))
        self._watchdog.progressed()

    def run(self) -> None:
        """Until the run is finished or a stop is requested; then what is under way is discarded, and the step boundary
        before it is written down. Where Redis is away at a stop, the last checkpoint stands."""
        try:
            self._run()
        except StoreUnavailable as error:
            if not self._stop_requested():
                raise
            self._tell("stopping", f"{error}: step {self._checkpoints.step} stands")

    def _run(self) -> None:
        self._last_step_at = self._clock()
        self._watchdog.progressed()  # however long it took to start everybody
        while not self.finished and not self._stop_requested():
            if not self._checkpoints.being_made:  # actors rest while their state is asked for
                self._hand_out()
            self._poll()
        if not self.finished:
            self._interrupt()
        self._finish_checkpoint()
        at_boundary = not self._training
        undone = self._rollouts.stop()
        if self._checkpoints.step < 0:
            self._tell("stopping", "nothing was learnt yet and there is no checkpoint: begin the run again")
        elif at_boundary and self._checkpoints.step != self.step:
            self.checkpoint_now(undone)

    def _poll(self) -> None:
        self._handle(self._workers.poll(POLL_S))
        self._watch(self._waiting_for)

    def _watch(self, waiting_for: Callable[[], str]) -> None:
        if warning := self._watchdog.check(waiting_for):
            self._tell("stalled", warning)

    def stops_while_store_is_away(self) -> bool:
        """For the store, which asks between two tries."""
        self._watch(lambda: "Redis, which is away")
        return self._stop_requested()

    def _interrupt(self) -> None:
        """The learner takes back what it has not finished, and stands at a step boundary; if it cannot in time, or
        dies, the last checkpoint is what a resume goes on from."""
        self._stopping = True
        self._rollouts.withdraw()
        deadline = self._clock() + self.plan.stop_patience_s
        if self._training:
            self._workers.interrupt_learner()
        while self._training and not self._learner_gone and self._clock() < deadline:
            self._poll()
        if self._training:
            self._tell("stopping", f"the learner is not at a step boundary: step {self._checkpoints.step} stands")

    def wait_for_evals(self, timeout_s: float, pending: Callable[[], bool]) -> None:
        """Handles events until no evaluation is pending any more, or a stop is requested."""
        deadline = self._clock() + timeout_s
        while pending() and self._clock() < deadline and not self._stop_requested():
            self._handle(self._workers.poll(POLL_S))
        if pending() and not self._stop_requested():
            self._tell("eval_failed", f"no result within {timeout_s:.0f} s: ask for fewer or shorter episodes (eval.*)")

    def checkpoint_now(self, undone: Collection[int] = ()) -> None:
        """A checkpoint of this step boundary, before the tickets `undone`; nothing may be in training. An exact one, or
        none where the last was exact: going on from that gives the same run."""
        assert not self._training
        directory = self._checkpoints.directory(self.step)
        self._checkpoints.make(directory, undone)
        self._workers.submit_save(directory, epoch=self._epoch, version=self.step)
        self._finish_checkpoint()

    def _finish_checkpoint(self) -> None:
        """The learner and the actors answer within deadlines of their own; for the first one no stop waits."""
        while self._checkpoints.being_made and not (self._checkpoints.step < 0 and self._stop_requested()):
            self._poll()
        self._checkpoints.give_up()

    def _hand_out(self) -> None:
        """Steps and tickets. Before a checkpoint actors come to rest, where they can: their state goes into it."""
        while len(self._training) <= self.plan.prefetch_steps and (batch := self._rollouts.cut()):
            step = self._flow.next_step - 1
            directory = self._checkpoints.directory(step + 1) if self._checkpoints.is_due(step + 1) else None
            order = StepOrder(step, self._epoch, self.plan.progress(step, self.counters.env_steps), directory)
            self._training.append((order, batch))
            self._workers.submit_step(order, [ready.handle[1] for ready in batch])
        self._rollouts.issue(ahead=all(order.checkpoint_directory is None for order, _ in self._training))

    def _handle(self, events: Sequence[Event]) -> None:
        failed = [event for event in events if isinstance(event, TicketFailed) and self._rollouts.awaits(event.header)]
        causes = self._observers.on_failures(failed)
        for kind, together in groupby(events, type):
            if issubclass(kind, TicketProduced | TicketScored | StepDone | LearnerSaved | EvalDone):
                self._watchdog.progressed()
            alike = list(together)
            if not self._rollouts.took(alike):
                for event in alike:
                    self._take(event)
        if not (self._stopping or self.finished):  # what fails then ends no run
            for event in causes:
                self._failures.failed(event.reason, event.detail, fruitless=event.fruitless)

    def _take(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._on_step_done(event)
        elif isinstance(event, LearnerLost):
            self._on_learner_lost(event)
        elif isinstance(event, LearnerSaved):
            self._on_learner_saved()
        elif isinstance(event, ShardStates):
            self._on_shard_states(event)
        elif isinstance(event, EvalDone):
            self._observers.on_evaluated(event, tokens=self.counters.tokens)

    def _on_step_done(self, event: StepDone) -> None:
        """Its weights are published. Order: commit, then checkpoint."""
        report = event.report
        if report.epoch != self._epoch:
            return
        order, batch = self._training.popleft()
        assert report.step == order.step
        if report.interrupted:  # its tickets are live still, and dropped with all others that a stop leaves
            self._flow.given_up()
            if order.checkpoint_directory is not None:
                self._checkpoints.discard(order.checkpoint_directory)
            return
        self._rollouts.commit(order.step, batch, skipped=report.skipped)
        began, self._last_step_at = self._last_step_at, self._clock()
        self.counters.restarts = self.restarts
        produced = [ready.handle[0] for ready in batch]
        record = self.counters.count(
            order, produced, report, publish_s=event.publish_s, step_s=self._last_step_at - began
        )
        if report.skipped:
            self._tell("skipped", f"step {order.step}: the loss or a gradient was not finite; skipped from there on")
        self._observers.on_step(record)  # before the checkpoint: what it holds has been told, whenever we are killed
        if order.checkpoint_directory is not None:
            self._checkpoints.make(order.checkpoint_directory)
            self._on_learner_saved()
        every = self.plan.eval_every_steps
        if every is not None and self.step % every == 0 and not self.finished:
            self._workers.submit_eval(step=self.step, env_steps=self.counters.env_steps)

    def _on_learner_lost(self, event: LearnerLost) -> None:
        """Back to the last checkpoint: what was in training or in flight is booked and issued again."""
        self._tell("learner_lost", event.detail)
        if self._checkpoints.step < 0:
            raise RollcallError(f"{event.detail}, before the first checkpoint")
        if self._stopping or self.finished:  # a resume does what would be done now
            self._learner_gone = True
            self._checkpoints.give_up()
            return
        checkpoint, manifest, warnings = latest_checkpoint(self._checkpoints.run_directory)
        for warning in warnings:
            self._tell("checkpoint_damaged", warning)
        epoch = self.resume(manifest)
        self._learner_restarts += 1
        self._tell("restored", f"step {manifest.step}")
        self._workers.restart_learner(checkpoint, epoch=epoch, version=manifest.step)
        self._watchdog.progressed()

    def _on_learner_saved(self) -> None:
        """The learner's part is there; where the actors rest, their state goes along."""
        if not self._checkpoints.being_made:
            return
        if self.plan.exact_checkpoints and self._rollouts.at_rest:
            self._workers.submit_shard_states(self._checkpoints.undone)
        else:
            self._write_checkpoint(None)

    def _on_shard_states(self, event: ShardStates) -> None:
        if not self._checkpoints.being_made:  # of one that was given up
            return
        if event.states is None and self._checkpoints.undone:
            self._checkpoints.give_up()
            self._tell("stopping", f"no exact state of step {self.step}: step {self._checkpoints.step} stands")
        else:
            self._write_checkpoint(event.states)

    def _write_checkpoint(self, shard_states: States | None) -> None:
        tier = self._checkpoints.write(
            self.step, epoch=self._epoch, counters=self.counters, tasks=self._tasks.state(), shard_states=shard_states
        )
        self._tell("checkpoint", f"step {self.step} ({tier})")

    def _waiting_for(self) -> str:
        tickets = f"tickets {self._flow.blocked_by()[:4]} (ready {self._flow.num_ready})"
        what = f"learner step {self._training[0][0].step}" if self._training else tickets
        return f"{what}; {self._workers.waiting_for()}"

    def _tell(self, kind: str, text: str) -> None:
        self._observers.on_event(kind, text)
