"""The loop against workers that fail, repeat themselves, come late, and die: the books balance whatever they do."""

from __future__ import annotations

import json
import random
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.books.consumption import LOG_NAME, ConsumptionLog, read_log
from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.checkpoint import CheckpointWriter, latest_checkpoint, write_state, write_weights
from rollcall.cluster.errors import BudgetSpent, EnvFailure, Stalled
from rollcall.cluster.loop.coordinator import Coordinator
from rollcall.cluster.loop.plan import Plan
from rollcall.cluster.loop.supervision import FailureBudget, Watchdog
from rollcall.cluster.loop.work import ShardWork
from rollcall.cluster.messages.events import (
    Event,
    LearnerLost,
    StepDone,
    TicketFailed,
    TicketProduced,
    TicketScored,
)
from rollcall.cluster.messages.records import (
    EpisodeStats,
    Header,
    Produced,
    Scoring,
    ShardPayload,
    Ticket,
    Timing,
    pack_weights,
)
from rollcall.cluster.messages.reports import StepOrder, StepReport
from rollcall.cluster.store.store import Store

BATCH = 3


@dataclass(frozen=True)
class Rollout:
    """What stands for a trajectory."""

    header: Header
    min_policy_version: int
    reward_model_version: str = ""

    def digest(self) -> str:
        return f"{self.header.ticket_id}-{self.header.attempt}"


def report(order: StepOrder, *, skipped: bool = False, interrupted: bool = False) -> StepReport:
    return StepReport(order.step, order.epoch, skipped, 0.01, 0.0, 1e-3, {"loss": 0.0}, interrupted)


class FaultyWorkers:
    """Workers that do their work in a random order and, with the given chances, badly."""

    def __init__(self, directory: Path, seed: int, **chances: float) -> None:
        self.random = random.Random(seed)
        self.chances = chances
        self.scores = False
        self.directory = directory
        self.log = ConsumptionLog(directory / "logs" / LOG_NAME)
        self.tickets: list[Ticket] = []
        self.unscored: list[TicketProduced] = []
        self.steps: deque[tuple[StepOrder, Sequence[Rollout]]] = deque()
        self.version = 0
        self.incarnations: dict[int, int] = {}
        self.restarts = 0
        self.restarts_by_role: dict[str, int] = {}
        self.learner_deaths = 0
        self.interrupted = False

    def happens(self, what: str) -> bool:
        return self.random.random() < self.chances.get(what, 0.0)

    def submit_tickets(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            assert isinstance(ticket.payload, ShardPayload) and ticket.lane == ticket.payload.shard
            assert ticket.payload.incarnation >= self.incarnations.get(ticket.payload.shard, 0)
            self.incarnations[ticket.payload.shard] = ticket.payload.incarnation
        self.tickets += tickets

    def submit_scoring(self, produced: Produced, handle: Any) -> None:
        self.unscored.append(TicketProduced(produced, handle))

    def submit_step(self, order: StepOrder, handles: Sequence[Any]) -> None:
        assert all(rollout.reward_model_version for rollout in handles) == self.scores
        self.steps.append((order, handles))

    def submit_eval(self, *, step: int, env_steps: int) -> None: ...

    def poll(self, timeout_s: float) -> list[Event]:
        if self.unscored and self.random.random() < 0.5:
            return self._score(self.unscored.pop(self.random.randrange(len(self.unscored))))
        if self.tickets and (not self.steps or self.random.random() < 0.8):
            return self._produce(self.tickets.pop(self.random.randrange(len(self.tickets))))
        if self.steps:
            return [self._learn()]
        return []

    def _produce(self, ticket: Ticket) -> list[Event]:
        if self.happens("fail"):
            failed = TicketFailed(ticket.header, "actor_died", "it was killed", True)
            # The result of an attempt that was given up may still come, late.
            return [failed, self._produced(ticket)] if self.happens("late") else [failed]
        produced = self._produced(ticket)
        return [produced, produced] if self.happens("twice") else [produced]

    def _score(self, event: TicketProduced) -> list[Event]:
        produced = event.produced
        if self.happens("unscored"):
            return [TicketFailed(produced.header, "unscored", "the scorer raised", False)]
        assert isinstance(event.handle, Rollout)
        rewarded = replace(event.handle, reward_model_version="v1")
        scored = TicketScored(replace(produced, scoring=Scoring("v1", 0.5, 0.01)), rewarded)
        return [scored, scored] if self.happens("twice") else [scored]

    def _produced(self, ticket: Ticket) -> TicketProduced:
        version = ticket.min_policy_version
        rollout = Rollout(ticket.header, version)
        produced = Produced(
            header=replace(ticket.header, actor_id="actor"),
            min_policy_version=version,
            num_steps=5,
            size_bytes=0,
            episodes=(EpisodeStats(1.0, 5),),
            env_restarts=0,
            timing=Timing(act_s=0.01),
        )
        return TicketProduced(produced, rollout)

    def _learn(self) -> Event:
        order, rollouts = self.steps.popleft()
        if self.interrupted and not self.happens("finishes first"):
            return StepDone(report(order, interrupted=True), None)
        if self.happens("learner dies"):
            self.learner_deaths += 1
            if self.random.random() < 0.5:  # after it had written its log
                self.log.append(order.step, order.epoch, rollouts)
            self.steps.clear()
            return LearnerLost("it was killed")
        self.log.append(order.step, order.epoch, rollouts)
        if order.checkpoint_directory is not None:
            self._save(order.checkpoint_directory, order.step + 1)
        return StepDone(report(order, skipped=self.happens("skip")), order.step + 1)

    def _save(self, directory: Path, version: int) -> None:
        write_weights(directory, pack_weights("policy", 1, version, {"w": np.array([version])}))
        write_state(directory, "learner", {}, {})

    def publish(self, weights: Any) -> None:
        self.version = weights

    def save_learner(self, directory: Path, *, epoch: int, version: int) -> None:
        self._save(directory, version)

    def restart_learner(self, checkpoint: Path, *, epoch: int, version: int, detail: str) -> None:
        self.version = version

    def interrupt_learner(self) -> None:
        self.interrupted = True

    def shard_states(self, undone: Collection[int] = ()) -> None:
        return None

    def waiting_for(self) -> str:
        return f"{len(self.tickets)} tickets"

    def release(self, handle: Any) -> None: ...


class Recorder:
    """metrics.jsonl, as far as the audit reads it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "metrics.jsonl"
        self.events: list[str] = []

    def on_step(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def on_eval(self, record: dict[str, Any]) -> None: ...

    def on_event(self, kind: str, text: str) -> None:
        self.events.append(kind)
        if kind == "restored":
            step = int(text.split()[1])
            lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
            self.path.write_text("".join(lines[:step]))


def coordinate(
    directory: Path, store: Store, workers: FaultyWorkers, *, lag: int, steps: int = 25, scored: bool = False
) -> tuple[Coordinator, Recorder]:
    address: dict[str, Any] = store.client.get_connection_kwargs()
    (directory / "redis").mkdir(parents=True, exist_ok=True)
    (directory / "redis" / "run_id").write_text(store.run_id)
    (directory / "redis" / "url").write_text(f"redis://:{address['password']}@127.0.0.1:{address['port']}")
    (directory / "config.yaml").write_text(f"max_policy_lag: {lag}\n")
    plan = Plan(
        run_id=store.run_id,
        run_seed=0,
        policy_id="policy",
        config_hash="c",
        tickets_per_step=BATCH,
        max_policy_lag=lag,
        on_stale="wait",
        total_learner_steps=steps,
        total_env_steps=None,
        ticket_deadline_s=1,
        checkpoint_every_steps=4,
        eval_every_steps=None,
        prefetch_steps=1 if lag else 0,
        consumption_log=directory / "logs" / LOG_NAME,
        exact_checkpoints=False,
        scored=scored,
    )
    workers.scores = scored
    recorder = Recorder(directory)
    coordinator = Coordinator(
        plan,
        work=ShardWork(BATCH, "fragment"),
        workers=workers,
        ledger=Ledger(store, tickets_per_step=BATCH),
        checkpoints=CheckpointWriter(directory, keep=3),
        recorders=[recorder],
        watchdog=Watchdog(warning_s=5, timeout_s=10),
        failures=FailureBudget(max_failures=100),
    )
    coordinator.begin()
    coordinator.checkpoint_now()
    return coordinator, recorder


@pytest.mark.parametrize("lag", [0, 1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_workers_do_the_books_balance(tmp_path: Path, store: Store, lag: int, seed: int) -> None:
    workers = FaultyWorkers(tmp_path, seed, fail=0.15, late=0.5, twice=0.1, skip=0.1, **{"learner dies": 0.05})
    coordinator, recorder = coordinate(tmp_path, store, workers, lag=lag)
    coordinator.run()
    assert coordinator.finished
    counts = coordinator._ledger.counts()
    assert counts.balanced
    assert counts.in_flight == 0
    assert counts.committed == 25 * BATCH
    assert coordinator.counters.lag_max <= lag
    assert [str(item) for item in audit_run(tmp_path)] == []
    assert coordinator.restarts == workers.learner_deaths == recorder.events.count("learner_lost")


@pytest.mark.parametrize("lag", [0, 1, 4])
def test_what_is_learnt_from_was_scored_and_the_books_balance(tmp_path: Path, store: Store, lag: int) -> None:
    chances = {"fail": 0.1, "late": 0.5, "twice": 0.1, "unscored": 0.1, "learner dies": 0.05}
    workers = FaultyWorkers(tmp_path, lag, **chances)
    coordinator, _ = coordinate(tmp_path, store, workers, lag=lag, scored=True)
    coordinator.run()
    counts = coordinator._ledger.counts()
    assert counts.committed == 25 * BATCH and counts.in_flight == 0
    assert counts.dropped_by_reason["unscored"] > 0
    assert coordinator.counters.lag_max <= lag
    assert [str(item) for item in audit_run(tmp_path)] == []
    lines = read_log(tmp_path / "logs" / LOG_NAME).lines
    assert {consumed.reward_version for _, consumed in lines} == {"v1"}


def test_a_result_that_comes_twice_or_late_is_refused_and_counted(tmp_path: Path, store: Store) -> None:
    workers = FaultyWorkers(tmp_path, 0, fail=0.2, late=1.0, twice=0.3)
    coordinator, _ = coordinate(tmp_path, store, workers, lag=1)
    coordinator.run()
    assert coordinator._ledger.counts().duplicates_refused > 5
    assert coordinator._ledger.counts().committed == 25 * BATCH


def test_a_unit_that_fails_three_times_is_given_up_and_the_run_goes_on(tmp_path: Path, store: Store) -> None:
    class Cursed(FaultyWorkers):
        def _produce(self, ticket: Ticket) -> list[Event]:
            if ticket.header.ticket_id == 5:
                return [TicketFailed(ticket.header, "deadline", "it hangs", True)]
            return super()._produce(ticket)

    coordinator, recorder = coordinate(tmp_path, store, Cursed(tmp_path, 0), lag=1)
    coordinator.run()
    counts = coordinator._ledger.counts()
    assert counts.dropped_by_reason == {"deadline": 2, "attempts_exhausted": 1}
    assert counts.committed == 25 * BATCH
    assert "attempts_exhausted" in recorder.events
    assert coordinator._work.incarnations[5 % BATCH] == 3


def test_an_env_beyond_its_budget_ends_the_run(tmp_path: Path, store: Store) -> None:
    class Broken(FaultyWorkers):
        def _produce(self, ticket: Ticket) -> list[Event]:
            return [TicketFailed(ticket.header, "env_failed", "no wheel", True)]

    coordinator, _ = coordinate(tmp_path, store, Broken(tmp_path, 0), lag=1)
    with pytest.raises(EnvFailure, match="no wheel"):
        coordinator.run()


class AlwaysFailing(FaultyWorkers):
    """Every rollout fails, or every score; `passes`: the chance of one that does not."""

    passes = 0.0

    def _fails(self) -> bool:
        return self.random.random() >= self.passes

    def _produce(self, ticket: Ticket) -> list[Event]:
        if self.scores or not self._fails():
            return super()._produce(ticket)
        trace = "NaN in observation[1]\n  File 'mine.py', line 7"
        return [TicketFailed(ticket.header, "non_finite", trace, True)]

    def _score(self, event: TicketProduced) -> list[Event]:
        if not self._fails():
            return super()._score(event)
        return [TicketFailed(event.produced.header, "unscored", "no API key", False)]


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("lag", [0, 4])
def test_rollouts_that_always_fail_end_the_run_with_the_last_cause_word_for_word(
    tmp_path: Path, store: Store, lag: int, scored: bool
) -> None:
    coordinator, recorder = coordinate(tmp_path, store, AlwaysFailing(tmp_path, 0), lag=lag, scored=scored)
    with pytest.raises(BudgetSpent, match="last 100 rollouts failed") as ended:
        coordinator.run()
    assert str(ended.value).endswith("no API key" if scored else "observation[1]\n  File 'mine.py', line 7")
    assert ended.value.reason == ("unscored" if scored else "non_finite")
    counts = coordinator._ledger.counts()
    assert counts.committed == 0 and counts.dropped == 100 and counts.balanced
    assert recorder.events.count(ended.value.reason) == 100


@pytest.mark.parametrize("scored", [False, True])
def test_rollouts_of_which_four_in_five_fail_do_not_end_the_run(tmp_path: Path, store: Store, scored: bool) -> None:
    workers = AlwaysFailing(tmp_path, 0)
    workers.passes = 0.2
    coordinator, _ = coordinate(tmp_path, store, workers, lag=1, scored=scored)
    coordinator.run()
    assert coordinator.finished and coordinator._ledger.counts().dropped > 100


def test_a_failure_is_no_progress_to_the_watchdog(tmp_path: Path, store: Store) -> None:
    """An env that hangs fails once in a ticket's deadline: far too seldom for any budget of failures."""
    workers = AlwaysFailing(tmp_path, 0)
    coordinator, _ = coordinate(tmp_path, store, workers, lag=0)
    coordinator._failures = FailureBudget(max_failures=1_000_000_000)
    coordinator._watchdog = Watchdog(warning_s=0.1, timeout_s=0.5)
    with pytest.raises(Stalled):
        coordinator.run()


class Stopped(FaultyWorkers):
    """The run is to stop once step 6 is with the learner; `deaf`: which never hears of it; `dies`: and dies of it."""

    deaf = dies = False
    stop = False

    def submit_step(self, order: StepOrder, handles: Sequence[Any]) -> None:
        super().submit_step(order, handles)
        self.stop = self.stop or order.step >= 6

    def poll(self, timeout_s: float) -> list[Event]:
        if self.stop and (self.deaf or not self.interrupted):
            return []
        return super().poll(timeout_s)

    def _learn(self) -> Event:
        if self.interrupted and self.dies:
            self.steps.clear()
            return LearnerLost("it was killed")
        return super()._learn()


@pytest.mark.parametrize("lag", [0, 1, 4])
@pytest.mark.parametrize("late", [0.0, 0.5, 1.0])  # chance that the learner hears of it when it is done already
def test_a_stop_discards_the_batch_in_training_and_leaves_a_checkpoint_of_the_boundary_before_it(
    tmp_path: Path, store: Store, lag: int, late: float
) -> None:
    workers = Stopped(tmp_path, 0, **{"finishes first": late})
    coordinator, _ = coordinate(tmp_path, store, workers, lag=lag)
    coordinator._stop_requested = lambda: workers.stop
    coordinator.run()
    counts = coordinator._ledger.counts()
    assert 5 <= coordinator.step <= 8 and not coordinator.finished  # two may be with the learner
    assert counts.committed == coordinator.step * BATCH
    assert counts.in_flight == 0
    assert counts.dropped_by_reason.keys() <= {"stopped"}
    assert late or counts.dropped >= BATCH
    assert latest_checkpoint(tmp_path)[1].step == coordinator.step
    assert not list((tmp_path / "checkpoints").glob(".making-*"))
    assert audit_run(tmp_path) == []


@pytest.mark.parametrize("dies", [False, True])
def test_a_stop_that_cannot_have_a_boundary_in_time_leaves_the_last_checkpoint(
    tmp_path: Path, store: Store, dies: bool
) -> None:
    workers = Stopped(tmp_path, 0)
    workers.deaf, workers.dies = not dies, dies
    coordinator, _ = coordinate(tmp_path, store, workers, lag=1)
    if not dies:
        coordinator.plan = replace(coordinator.plan, stop_patience_s=0.2)
    coordinator._stop_requested = lambda: workers.stop
    began = time.monotonic()
    coordinator.run()
    assert time.monotonic() - began < 10
    assert latest_checkpoint(tmp_path)[1].step == 4 < coordinator.step
    assert coordinator._ledger.counts().in_flight == 0
    assert audit_run(tmp_path) == []
    assert [str(item) for item in audit_run(tmp_path)] == []
