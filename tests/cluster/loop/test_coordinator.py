"""The loop against workers that fail, repeat themselves, come late, and die: the books balance whatever they do."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.books.consumption import LOG_NAME, read_log
from rollcall.cluster.checkpoint import latest_checkpoint
from rollcall.cluster.errors import BudgetSpent, EnvFailure, Stalled, StoreUnavailable
from rollcall.cluster.loop.attempts import MAX_ATTEMPTS, MAX_DEATHS
from rollcall.cluster.loop.supervision import FailureBudget, Watchdog
from rollcall.cluster.loop.task_source import ShardSource
from rollcall.cluster.messages.attempt import Ticket
from rollcall.cluster.messages.events import (
    Event,
    Fault,
    LearnerLost,
    TicketFailed,
    TicketProduced,
)
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import Store, open_store
from tests.cluster.loop.faulty_workers import BATCH, FaultyWorkers, Rollout, coordinate


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


def test_a_rollout_acted_with_older_weights_than_asked_is_dropped_and_nobody_waits_for_it(
    tmp_path: Path, store: Store
) -> None:
    class Behind(FaultyWorkers):
        def _produced(self, ticket: Ticket) -> TicketProduced:
            event = super()._produced(ticket)
            if ticket.header.attempt > 1 or ticket.header.ticket_id % 4:
                return event
            version = max(0, ticket.min_policy_version - 1)
            assert isinstance(event.handle, Rollout)
            return TicketProduced(
                replace(event.produced, min_policy_version=version), replace(event.handle, min_policy_version=version)
            )

    coordinator, _ = coordinate(tmp_path, store, Behind(tmp_path, 0), lag=2)
    coordinator.run()
    counts = coordinator._ledger.counts()
    assert counts.committed == 25 * BATCH and counts.dropped_by_reason["stale"] > 10
    assert [str(item) for item in audit_run(tmp_path)] == []


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
    assert isinstance(coordinator._tasks, ShardSource)
    assert coordinator._tasks.incarnations[5 % BATCH] == 3


@pytest.mark.parametrize("fault", ["own", "death", "none"])
def test_deaths_that_are_no_fault_of_a_unit_use_up_none_of_its_attempts(
    tmp_path: Path, store: Store, fault: Fault
) -> None:
    """A unit that kills its actor each time ends, too, but later than one that fails by itself."""
    fails = 20

    class Dying(FaultyWorkers):
        def _produce(self, ticket: Ticket) -> list[Event]:
            if ticket.header.ticket_id == 5 and ticket.header.attempt <= fails:
                return [TicketFailed(ticket.header, "actor_died", "it was killed", True, fault=fault)]
            return super()._produce(ticket)

    coordinator, recorder = coordinate(tmp_path, store, Dying(tmp_path, 0), lag=1)
    coordinator.run()
    counts = coordinator._ledger.counts()
    given_up = {"own": MAX_ATTEMPTS, "death": MAX_DEATHS, "none": 0}[fault]
    if given_up:
        assert counts.dropped_by_reason == {"actor_died": given_up - 1, "attempts_exhausted": 1}
    else:
        assert counts.dropped_by_reason == {"actor_died": fails}
    assert counts.committed == 25 * BATCH
    assert ("attempts_exhausted" in recorder.events) == bool(given_up)


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
        if self.stop and (self.deaf or not self.interrupted) and not self.answers:
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


class Absent(FaultyWorkers):
    """Who never start, save or evaluate."""

    have_started = False

    def submit_save(self, directory: Path, *, epoch: int, version: int) -> None: ...

    def poll(self, timeout_s: float) -> list[Event]:
        return []


def test_a_stop_ends_the_wait_for_workers_and_for_evaluations_at_the_next_poll(tmp_path: Path, store: Store) -> None:
    coordinator, recorder = coordinate(tmp_path, store, FaultyWorkers(tmp_path, 0), lag=1)
    coordinator._workers = workers = Absent(tmp_path, 0)
    looks = 0

    def stop() -> bool:
        nonlocal looks
        looks += 1
        return looks > 3

    coordinator._stop_requested = stop
    coordinator.wait_for_workers()
    assert looks == 4 and not workers.have_started
    coordinator.wait_for_evals(1e9, lambda: True)
    assert "eval_failed" not in recorder.events


def test_a_stop_before_the_first_checkpoint_ends_at_the_next_poll_with_none(tmp_path: Path, store: Store) -> None:
    coordinator, recorder = coordinate(tmp_path, store, FaultyWorkers(tmp_path, 0), lag=1)
    coordinator._workers = Absent(tmp_path, 0)
    coordinator._checkpoints.step = -1
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").mkdir()
    looks = iter([False] * 5)
    coordinator._stop_requested = lambda: next(looks, True)
    coordinator.wait_for_workers()
    coordinator.checkpoint_now()
    coordinator.run()
    assert not coordinator.finished and not list((tmp_path / "checkpoints").iterdir())
    assert recorder.events.count("stopping") == 1


def test_the_watchdog_looks_while_the_learner_saves(tmp_path: Path, store: Store) -> None:
    coordinator, _ = coordinate(tmp_path, store, FaultyWorkers(tmp_path, 0), lag=1)
    coordinator._workers = Absent(tmp_path, 0)
    coordinator._watchdog = Watchdog(warning_s=0.1, timeout_s=0.3)
    with pytest.raises(Stalled):
        coordinator.checkpoint_now()


@pytest.mark.parametrize("stopping", [False, True])
def test_a_stop_does_not_wait_for_a_redis_that_is_away(tmp_path: Path, stopping: bool) -> None:
    """The last checkpoint stands: a resume goes on from there. Without a stop the outage ends the run in its time."""
    with open_store(RedisConfig(reconnect_timeout_s=30 if stopping else 0.5), tmp_path / "run") as store:
        workers = FaultyWorkers(tmp_path / "run", 0)
        coordinator, recorder = coordinate(tmp_path / "run", store, workers, lag=1)
        store.waits_no_longer = coordinator.stops_while_store_is_away
        store._revive = lambda: None  # type: ignore[method-assign]
        submit, alive = workers.submit_step, ["Redis"]

        def away(order: StepOrder, handles: Sequence[Any]) -> None:
            submit(order, handles)
            if order.step == 2:
                os.kill(store.server_pid, signal.SIGKILL)
                alive.clear()

        workers.submit_step = away  # type: ignore[method-assign]
        coordinator._stop_requested = lambda: stopping and not alive
        began = time.monotonic()
        if stopping:
            coordinator.run()
            assert "stopping" in recorder.events
        else:
            with pytest.raises(StoreUnavailable, match=r"waited for 0\.5 s"):
                coordinator.run()
        assert time.monotonic() - began < 10
