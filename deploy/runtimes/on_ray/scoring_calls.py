"""The scoring process of a run on Ray: it asks the reward service about what was produced, and gives back new records.
A trajectory outlives it: when it dies, another one is asked again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayError

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.loop.supervision import RestartBudget
from rollcall.cluster.messages.attempt import Produced
from rollcall.cluster.messages.events import Event, TicketFailed, TicketScored
from rollcall.deploy.runtimes.on_ray.calls import Answer, Calls
from rollcall.deploy.runtimes.on_ray.faults import cause_of, death_of, in_a_line


@dataclass(slots=True, eq=False)
class _Asked:
    produced: Produced
    trajectory: Any
    since: float


class RayScoring:
    """Keeps one scoring process at work."""

    def __init__(
        self, spawn: Callable[[], Any], budget: RestartBudget, calls: Calls, *, tell_failed: Callable[[str], None]
    ) -> None:
        """`tell_failed`: why it did not start."""
        self._spawn = spawn
        self._budget = budget
        self._calls = calls
        self._tell_failed = tell_failed
        self.handle = spawn()
        self._has_answered = False  # this process
        self._asked: list[_Asked] = []  # and not answered yet
        self._start_at: float | None = None  # of the next process, when this one has died
        self.restarts = 0

    def submit(self, produced: Produced, trajectory: Any) -> None:
        asked = _Asked(produced, trajectory, self._calls.clock())
        self._asked.append(asked)
        if self._start_at is None:
            self._ask(asked)

    def tend(self) -> None:
        """Starts another process when its back-off is over, and asks it for all that is unanswered."""
        if self._start_at is not None and self._calls.clock() >= self._start_at:
            self._start_at = None
            self.handle, self._has_answered = self._spawn(), False
            for asked in self._asked:
                self._ask(asked)

    def doing(self) -> list[str]:
        """In words, for how long the service has been waited for."""
        if not self._asked:
            return []
        oldest = min(asked.since for asked in self._asked)
        return [f"the reward service on {len(self._asked)} trajectories for {self._calls.clock() - oldest:.0f} s"]

    def _ask(self, asked: _Asked) -> None:
        scored, trajectory = self.handle.score.options(num_returns=2).remote(asked.produced, asked.trajectory)
        self._calls.expect(scored, partial(self._on_answer, asked, trajectory), owner=self)

    def _on_answer(self, asked: _Asked, trajectory: Any, answer: Answer) -> list[Event]:
        try:
            outcome = answer()
        except RayActorError as error:
            self._lose(error)
            return []
        except RayError as error:
            cause = cause_of(error)
            if isinstance(cause, RollcallError):
                raise cause from None  # the service was away for longer than the run is patient
            if isinstance(cause, ObjectLostError):
                self._asked.remove(asked)
                return [_lost(asked.produced)]
            raise RollcallError(f"scoring failed: {in_a_line(cause)}") from error
        self._has_answered = True
        self._budget.came_through()
        self._asked.remove(asked)
        if isinstance(outcome, TicketFailed):
            return [outcome]
        return [TicketScored(outcome, trajectory)]

    def _lose(self, error: RayActorError) -> None:
        """Raises RollcallError: where its code raised while it started, as another one's would."""
        if error.actor_init_failed:
            raise RollcallError(f"the scoring process did not start: {death_of(error)}") from error
        if not self._has_answered:
            self._tell_failed(death_of(error))
        self._calls.forget(self)
        self.restarts += 1
        delay_s = self._budget.next_delay_s(f"the scoring process died ({death_of(error)})")
        self._start_at = self._calls.clock() + delay_s


def _lost(produced: Produced) -> TicketFailed:
    return TicketFailed(
        produced.header,
        reason="object_lost",
        detail="its trajectory was lost, with whoever held it, before it was scored",
        state_lost=False,
    )
