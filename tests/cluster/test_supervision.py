"""Restart budgets and the watchdog, on a clock that the test moves."""

from __future__ import annotations

import pytest

from rollcall.cluster.errors import BudgetSpent, Stalled
from rollcall.cluster.supervision import RestartBudget, Watchdog


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_restarts_back_off_exponentially_and_stop_at_the_budget() -> None:
    clock = Clock()
    budget = RestartBudget("gym-0", max_restarts=4, window_s=60, first_delay_s=1, max_delay_s=4, clock=clock)
    delays = [budget.next_delay_s("it crashed") for _ in range(4)]
    for delay, full in zip(delays, [1, 2, 4, 4], strict=True):
        assert full / 2 <= delay <= full  # jitter takes up to half away
    with pytest.raises(BudgetSpent, match=r"gym-0 failed 5 times .* last cause: it crashed"):
        budget.next_delay_s("it crashed")


def test_restarts_long_ago_are_forgiven() -> None:
    clock = Clock()
    budget = RestartBudget("gym-0", max_restarts=1, window_s=60, clock=clock)
    budget.next_delay_s("first")
    clock.now = 61
    budget.next_delay_s("second")
    assert budget.total == 2


def test_the_watchdog_warns_then_stops_and_names_what_is_waited_for() -> None:
    clock = Clock()
    watchdog = Watchdog(warning_s=10, timeout_s=100, clock=clock)
    assert watchdog.check(lambda: "") is None
    clock.now = 11
    warning = watchdog.check(lambda: "gym-0 on ticket 5")
    assert warning is not None and "gym-0 on ticket 5" in warning
    assert watchdog.check(lambda: "") is None  # once, then twice as late
    clock.now = 21
    assert watchdog.check(lambda: "") is not None
    clock.now = 101
    with pytest.raises(Stalled, match="waiting for gym-0 on ticket 5"):
        watchdog.check(lambda: "gym-0 on ticket 5")


def test_progress_calms_the_watchdog() -> None:
    clock = Clock()
    watchdog = Watchdog(warning_s=10, timeout_s=100, clock=clock)
    for clock.now in range(0, 1000, 9):
        watchdog.progressed()
        assert watchdog.check(lambda: "") is None
