"""The evaluator of a run on Ray: one process that is kept at work. What it was asked for outlives it; an evaluation
that cannot be had ends no run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.exceptions import RayActorError, RayError

from rollcall.cluster.errors import BudgetSpent, EngineMismatch
from rollcall.cluster.loop.supervision import RestartBudget
from rollcall.cluster.messages.events import EvalDone, Event
from rollcall.deploy.runtimes.on_ray.calls import Answer, Calls
from rollcall.deploy.runtimes.on_ray.deaths import Deaths
from rollcall.deploy.runtimes.on_ray.faults import cause_of, death_of, in_a_line

MAX_ASKED = 3  # times for one evaluation: what dies at it again and again is not asked for more


@dataclass(slots=True, eq=False)
class _Asked:
    step: int
    env_steps: int
    weights: Any
    times: int = 0


class RayEvaluator:
    """Started when it is first asked: until then, others need the cores."""

    def __init__(
        self,
        spawn: Callable[[], Any],
        budget: RestartBudget,
        calls: Calls,
        *,
        episodes: int,
        deaths: Deaths,
        tell_failed: Callable[[str], None],
    ) -> None:
        """`tell_failed`: why it did not start."""
        self._spawn = spawn
        self._budget = budget
        self._calls = calls
        self._episodes = episodes
        self._deaths = deaths
        self._tell_failed = tell_failed
        self.handle: Any = None
        self._has_answered = False  # this process
        self._asked: list[_Asked] = []  # and not answered yet
        self._start_at = -float("inf")  # no earlier
        self.restarts = 0

    def submit(self, *, step: int, env_steps: int, weights: Any) -> None:
        asked = _Asked(step, env_steps, weights)
        self._asked.append(asked)
        if self.handle is not None:
            self._ask(asked)
        self.tend()

    @property
    def pending(self) -> bool:
        return bool(self._asked)

    def tend(self) -> None:
        """Starts one where somebody waits, when its back-off is over, and asks it for all that is unanswered."""
        if self.handle is None and self._asked and self._calls.clock() >= self._start_at:
            self.handle, self._has_answered = self._spawn(), False
            for asked in self._asked:
                self._ask(asked)

    def _ask(self, asked: _Asked) -> None:
        asked.times += 1
        reference = self.handle.evaluate.remote(asked.weights, self._episodes)
        self._calls.expect(reference, partial(self._on_answer, asked), owner=self)

    def _on_answer(self, asked: _Asked, answer: Answer) -> list[Event]:
        try:
            report = answer()
        except RayActorError as error:
            return self._lose(error)
        except RayError as error:
            cause = cause_of(error)
            if isinstance(cause, EngineMismatch):
                raise cause from None
            self._has_answered = True
            return [self._gives_up(asked, in_a_line(cause))]
        self._has_answered = True
        self._budget.came_through()
        self._asked.remove(asked)
        return [EvalDone(asked.step, asked.env_steps, report)]

    def _lose(self, error: RayActorError) -> list[Event]:
        """Another one is asked again, but not for what this one was asked for too often: the first."""
        detail = self._deaths.of("the evaluator", "evaluator", error)
        if not self._has_answered:
            self._tell_failed(death_of(error))
        self._calls.forget(self)
        self._calls.api.kill(self.handle)
        self.handle = None
        self.restarts += 1
        first = self._asked[0]
        if error.actor_init_failed or first.times >= MAX_ASKED:
            return [self._gives_up(first, detail)]
        try:
            self._start_at = self._calls.clock() + self._budget.next_delay_s(detail)
        except BudgetSpent as spent:
            return [self._gives_up(asked, str(spent)) for asked in list(self._asked)]
        return []

    def _gives_up(self, asked: _Asked, why: str) -> EvalDone:
        self._asked.remove(asked)
        return EvalDone(asked.step, asked.env_steps, None, why)
