"""Restart budgets and the watchdog, on a clock that the test moves."""

from __future__ import annotations

import pytest

from rollcall.cluster.errors import BudgetSpent, Stalled
from rollcall.cluster.loop.supervision import FailureBudget, RestartBudget, Watchdog


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


def test_what_raises_three_times_and_gets_nothing_done_is_not_started_again() -> None:
    budget = RestartBudget("gym-0", max_restarts=10, window_s=60, clock=Clock())
    for _ in range(2):
        budget.next_delay_s("KeyError: 'x'", raised=True)
    budget.came_through()
    for _ in range(2):
        budget.next_delay_s("KeyError: 'x'", raised=True)
    with pytest.raises(BudgetSpent, match=r"gym-0 raised 3 times in a row and got nothing done: KeyError: 'x'"):
        budget.next_delay_s("KeyError: 'x'", raised=True)


def test_what_is_killed_may_be_started_again_more_often_than_what_raises() -> None:
    budget = RestartBudget("gym-0", max_restarts=10, window_s=60, clock=Clock())
    for _ in range(10):
        budget.next_delay_s("killed")


def test_failures_in_a_row_spend_their_budget_and_one_success_gives_it_back() -> None:
    budget = FailureBudget(max_failures=100, clock=Clock())
    for _ in range(3):
        for _ in range(99):
            budget.failed("unscored", "KeyError: 'x'")
        budget.came_through()
    for _ in range(99):
        budget.failed("unscored", "KeyError: 'x'")
    with pytest.raises(BudgetSpent, match=r"last 100 rollouts failed .*max_failures=100.*unscored: KeyError: 'x'"):
        budget.failed("unscored", "KeyError: 'x'")


def test_where_nothing_has_a_score_a_tenth_of_slow_failures_is_enough_and_many_at_one_moment_are_one() -> None:
    clock = Clock()
    budget = FailureBudget(max_failures=100, clock=clock)
    for _ in range(30):
        budget.failed("unscored", "the judge is away", fruitless=True)
    for clock.now in range(10, 90, 10):
        budget.failed("unscored", "it took too long", fruitless=True)
    clock.now = 100
    with pytest.raises(BudgetSpent, match="last 39 rollouts failed"):
        budget.failed("unscored", "it took too long", fruitless=True)


def test_slow_failures_of_which_some_items_have_scores_need_the_whole_budget() -> None:
    clock = Clock()
    budget = FailureBudget(max_failures=100, clock=clock)
    for clock.now in range(0, 990, 10):
        budget.failed("unscored", "no score for one of eight", fruitless=clock.now % 70 != 0)


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
