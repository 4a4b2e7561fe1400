"""How long a run goes on where things fail: restart budgets, the budget of failed rollouts, and the watchdog that says
what is waited for. Decides only; it must never start or kill anything itself."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.errors import BudgetSpent, Stalled

Clock = Callable[[], float]

RAY_LOST = "ray_lost"  # the kind of event that says that a private cluster is started anew
START_FAILED = "start_failed"  # the kind of event that says `<role>: <why>` of a process that did not start
MAX_RAISED = 3  # code that raises does the same thing again; a process that dies may have been killed
SLOW_S = 5.0  # failures that are further apart than this are slow ones


class SupervisionConfig(BaseModel):
    """How patient a run is, and how often it fixes itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_restarts: int = Field(default=10, ge=0, description="restarts of one component allowed per window")
    restart_window_s: float = Field(default=600.0, gt=0, description="the window over which restarts are counted")
    stall_warning_s: float = Field(default=30.0, gt=0, description="seconds without progress before a warning is shown")
    stall_timeout_s: float = Field(
        default=600.0, gt=0, description="seconds without progress before the run is stopped"
    )
    max_failures: int = Field(
        default=100,
        ge=1,
        description="rollouts that may fail in a row, none coming through, before the run is stopped; a tenth of them "
        "where nothing has a score and each takes long",
    )


class RestartBudget:
    """Allows `max_restarts` within `window_s`, each later than the last by exponential back-off with jitter. What
    raises MAX_RAISED times and gets nothing done between them is not started again."""

    def __init__(
        self,
        component: str,
        *,
        max_restarts: int,
        window_s: float,
        first_delay_s: float = 0.1,
        max_delay_s: float = 30.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.component = component
        self.max_restarts = max_restarts
        self.window_s = window_s
        self.first_delay_s = first_delay_s
        self.max_delay_s = max_delay_s
        self.total = 0
        self._clock = clock
        self._recent: deque[float] = deque()
        self._raised = 0  # in a row
        self._jitter = random.Random(component)

    def came_through(self) -> None:
        """The component has done what it is for."""
        self._raised = 0

    def next_delay_s(self, cause: str, *, raised: bool = False) -> float:
        """Books one restart; returns how long to wait before it. `raised`: by an exception in the component's code.

        Raises:
          BudgetSpent: naming the component and the last cause.
        """
        self._raised = self._raised + 1 if raised else 0
        if self._raised >= MAX_RAISED:
            raise BudgetSpent(f"{self.component} raised {self._raised} times in a row and got nothing done: {cause}")
        now = self._clock()
        while self._recent and now - self._recent[0] > self.window_s:
            self._recent.popleft()
        if len(self._recent) >= self.max_restarts:
            raise BudgetSpent(
                f"{self.component} failed {len(self._recent) + 1} times within {self.window_s:.0f} s, "
                f"its budget is {self.max_restarts} restarts; last cause: {cause}"
            )
        exponent = len(self._recent)
        self._recent.append(now)
        self.total += 1
        delay = min(self.first_delay_s * 2.0**exponent, self.max_delay_s)
        return delay * (0.5 + 0.5 * self._jitter.random())


class FailureBudget:
    """Tells failures that pass from those that stay. Between failures that pass (a NaN now and then, a reward that is
    flaky) rollouts come through; `max_failures` in a row with none between them are no accident. Where nothing at all
    has a score, and that takes long (a reward that times out), a tenth of them is enough: of all failures within SLOW_S
    one counts, so that many which have one cause are one."""

    def __init__(self, *, max_failures: int, clock: Clock = time.monotonic) -> None:
        self.max_failures = max_failures
        self.max_slow = max(2, max_failures // 10)
        self._clock = clock
        self._in_a_row = 0
        self._slow = 0
        self._last_slow = -float("inf")

    def came_through(self) -> None:
        """A rollout that can be learnt from."""
        self._in_a_row = self._slow = 0

    def failed(self, reason: str, cause: str, *, fruitless: bool = False) -> None:
        """A rollout did not come through, or several for one cause. `fruitless`: it was unscored, every item of it.

        Raises:
          BudgetSpent: with the last cause, word for word.
        """
        now = self._clock()
        self._in_a_row += 1
        if not fruitless:
            self._slow = 0
        elif now - self._last_slow >= SLOW_S:
            self._slow += 1
            self._last_slow = now
        if self._in_a_row >= self.max_failures or self._slow >= self.max_slow:
            raise BudgetSpent(
                f"the last {self._in_a_row} rollouts failed and none came through (supervision.max_failures="
                f"{self.max_failures}): {reason}: {cause}",
                reason=reason,
            )


class Watchdog:
    """Notices that nothing has moved. Whoever makes progress calls `progressed` (a failure is none, however many there
    are); the driver's loop calls `check`."""

    def __init__(self, *, warning_s: float, timeout_s: float, clock: Clock = time.monotonic) -> None:
        self.warning_s = warning_s
        self.timeout_s = timeout_s
        self._clock = clock
        self._last = clock()
        self._next_warning = warning_s

    def progressed(self) -> None:
        self._last = self._clock()
        self._next_warning = self.warning_s

    def check(self, waiting_for: Callable[[], str]) -> str | None:
        """A warning to show, when one is due; `waiting_for` says in words what the run waits for.

        Raises:
          Stalled: after `timeout_s` without progress.
        """
        idle_s = self._clock() - self._last
        if idle_s >= self.timeout_s:
            raise Stalled(f"no progress for {idle_s:.0f} s: waiting for {waiting_for()}")
        if idle_s < self._next_warning:
            return None
        self._next_warning *= 2
        return f"no progress for {idle_s:.0f} s: waiting for {waiting_for()}"
