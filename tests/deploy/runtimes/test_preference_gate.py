"""Who keeps a preference trainer at work: a clock that is set by hand, and a trainer that does what it is told."""

from __future__ import annotations

from typing import Any

import pytest

from rollcall.cluster.errors import BudgetSpent, RewardError, RewardTimeout
from rollcall.cluster.loop.supervision import RestartBudget
from rollcall.cluster.messages.attempt import Header, Produced, Timing
from rollcall.deploy.kinds.preference_trainer import TrainerReport
from rollcall.deploy.runtimes.preference_gate import BEATS_EVERY_S, SILENT_S, PreferenceGate, TrainerLost

PATIENCE_S = 3000.0


class Trainer:
    """A TrainerCalls: `answer` is what the `advance` under way comes to."""

    def __init__(self) -> None:
        self.started = self.ended = self.beat = 0
        self.offered: list[Any] = []
        self.asked: list[int] = []
        self.answer: TrainerReport | Exception | None = None

    def start(self) -> None:
        self.started += 1
        self.offered, self.answer = [], None

    def offer(self, trajectory: Any) -> None:
        self.offered.append(trajectory)

    def advance(self, due: int) -> None:
        self.asked.append(due)
        self.answer = None

    def report(self) -> TrainerReport | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def beats(self) -> int:
        return self.beat

    def end(self) -> None:
        self.ended += 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """Labels are due at ten times a policy's version, and ten at version 0."""

    def __init__(self, max_restarts: int = 5) -> None:
        self.clock, self.trainer = Clock(), Trainer()
        budget = RestartBudget("the preference trainer", max_restarts=max_restarts, window_s=600.0, clock=self.clock)
        self.gate = PreferenceGate(
            self.trainer, due=lambda v: 10 * max(v, 1), patience_s=PATIENCE_S, budget=budget, clock=self.clock
        )
        self.gate.start()

    def hold(self, ticket: int, version: int) -> None:
        produced = Produced(Header(ticket, 1, 1), version, 100, Timing(), num_steps=32)
        self.gate.hold(produced, f"trajectory {ticket}")

    def tend(self) -> list[int]:
        return [produced.header.ticket_id for produced, _ in self.gate.tend()]


def test_a_trajectory_waits_for_the_labels_that_are_due_at_its_version_and_is_offered_at_once() -> None:
    bench = Bench()
    bench.hold(0, 1)
    bench.hold(1, 2)
    bench.hold(2, 1)
    assert bench.trainer.offered == ["trajectory 0", "trajectory 1", "trajectory 2"]
    assert bench.tend() == [] and bench.trainer.asked == [20]
    bench.trainer.answer = TrainerReport(num_labels=12, learnt=10)
    assert bench.tend() == [0, 2]  # in their order
    assert bench.trainer.asked == [20, 20]  # and on it goes
    assert bench.gate.doing() == ["12 of 20 labels and the reward model that learns from them for 0 s"]
    bench.trainer.answer = TrainerReport(num_labels=20, learnt=20)
    assert bench.tend() == [1] and len(bench.gate) == 0
    bench.hold(3, 2)
    assert bench.tend() == [3]  # nothing more is due
    assert bench.trainer.asked == [20, 20]


def test_a_trainer_that_died_is_started_again_after_a_back_off_and_offered_what_waits() -> None:
    bench = Bench()
    bench.hold(0, 1)
    bench.tend()
    bench.trainer.answer = TrainerLost("it was killed")
    assert bench.tend() == [] and bench.trainer.started == 1
    assert "started again" in bench.gate.doing()[0]
    bench.hold(1, 1)  # while it is down
    bench.clock.now = 1.0
    assert bench.tend() == [] and bench.trainer.started == 2
    assert bench.trainer.offered == ["trajectory 0", "trajectory 1"] and bench.gate.restarts == 1
    bench.trainer.answer = TrainerReport(num_labels=10, learnt=10)
    assert bench.tend() == [0, 1]


def test_what_was_learnt_before_a_restart_still_counts() -> None:
    bench = Bench()
    bench.hold(0, 1)
    bench.tend()
    bench.trainer.answer = TrainerReport(num_labels=10, learnt=10)
    assert bench.tend() == [0]
    bench.hold(1, 2)
    bench.tend()
    bench.trainer.answer = TrainerLost("it was killed")
    bench.tend()
    bench.hold(2, 1)
    assert bench.tend() == [2]  # the model that learnt from ten labels is in service still
    bench.clock.now = 1.0
    bench.tend()
    bench.trainer.answer = TrainerReport(num_labels=10, learnt=0)  # a new one has put nothing into service yet
    bench.hold(3, 1)
    assert bench.tend() == [3]


def test_deaths_are_counted_and_end_the_run_with_the_last_cause() -> None:
    bench = Bench(max_restarts=2)
    bench.hold(0, 1)
    for _ in range(2):
        bench.tend()
        bench.trainer.answer = TrainerLost("out of memory")
        bench.tend()
        bench.clock.now += 31.0
    bench.tend()
    bench.trainer.answer = TrainerLost("out of memory")
    with pytest.raises(BudgetSpent, match=r"the preference trainer failed 3 times.*out of memory"):
        bench.tend()


def test_code_that_raises_three_times_and_gets_nothing_done_is_not_started_again() -> None:
    bench = Bench(max_restarts=10)
    bench.hold(0, 1)
    for _ in range(2):
        bench.tend()
        bench.trainer.answer = TrainerReport(num_labels=4, learnt=0)  # the same four: nothing is done by reading them
        bench.tend()
        bench.trainer.answer = TrainerLost("ZeroDivisionError", raised=True)
        bench.tend()
        bench.clock.now += 31.0
    bench.tend()
    bench.trainer.answer = TrainerLost("ZeroDivisionError", raised=True)
    with pytest.raises(BudgetSpent, match="raised 3 times in a row and got nothing done: ZeroDivisionError"):
        bench.tend()


def test_a_trainer_that_hangs_is_ended_and_one_that_works_for_long_is_not() -> None:
    bench = Bench()
    bench.hold(0, 1)
    bench.tend()
    for _ in range(3):
        bench.clock.now += SILENT_S - BEATS_EVERY_S
        bench.trainer.beat += 1
        bench.tend()
    assert bench.trainer.ended == 0
    bench.clock.now += SILENT_S + BEATS_EVERY_S
    bench.tend()
    assert (bench.trainer.ended, bench.trainer.started) == (1, 1)
    bench.clock.now += 1.0
    bench.tend()
    assert bench.trainer.started == 2 and bench.trainer.asked == [10, 10]


def test_labels_that_do_not_come_end_the_run_when_its_patience_is_over() -> None:
    bench = Bench()
    bench.hold(0, 1)
    bench.tend()
    while bench.clock.now < PATIENCE_S:
        bench.trainer.answer = TrainerReport(num_labels=3, learnt=0)
        assert bench.tend() == []
        bench.clock.now += 100.0
    bench.clock.now += 1.0
    with pytest.raises(RewardTimeout, match="3 of 10 labels came within 3000 s: label at the run's page"):
        bench.tend()


def test_what_another_trainer_could_not_fix_ends_the_run_at_once() -> None:
    bench = Bench()
    bench.hold(0, 1)
    bench.tend()
    bench.trainer.answer = RewardError("no two stretches of 32 steps")
    with pytest.raises(RewardError, match="no two stretches"):
        bench.tend()


def test_nothing_is_asked_of_a_trainer_while_nobody_waits() -> None:
    bench = Bench()
    for _ in range(10):
        bench.clock.now += SILENT_S
        assert bench.tend() == [] and bench.gate.doing() == []
    assert bench.trainer.asked == [] and bench.trainer.ended == 0
