"""The scoring process of a run on Ray: it asks the reward service about what was produced, and hands back new records.
A trajectory outlives it: when it dies, another one is asked again. Must never decide what happens to the books."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.loop.supervision import RestartBudget
from rollcall.cluster.messages.events import Event, TicketFailed, TicketScored
from rollcall.cluster.messages.records import Produced
from rollcall.deploy.runtimes.on_ray.actors import Pending
from rollcall.deploy.runtimes.on_ray.faults import CONTROL_TIMEOUT_S, cause_of, death_of


@dataclass(slots=True)
class _Asked:
    produced: Produced
    trajectory: Any
    since: float


class RayScoring:
    """Keeps one scoring process at work."""

    def __init__(self, spawn: Callable[[], Any], budget: RestartBudget, pending: Pending) -> None:
        self._spawn = spawn
        self._budget = budget
        self._pending = pending
        self.handle = spawn()
        self._asked: dict[Any, _Asked] = {}
        self.restarts = 0

    def submit(self, produced: Produced, trajectory: Any) -> None:
        self._ask(_Asked(produced, trajectory, time.monotonic()))

    def doing(self) -> list[str]:
        """In words, for how long the service has been waited for."""
        if not self._asked:
            return []
        oldest = min(asked.since for asked in self._asked.values())
        return [f"the reward service on {len(self._asked)} trajectories for {time.monotonic() - oldest:.0f} s"]

    def _ask(self, asked: _Asked) -> None:
        scored, trajectory = self.handle.score.options(num_returns=2).remote(asked.produced, asked.trajectory)
        self._asked[scored] = asked
        self._pending[scored] = partial(self._on_answer, scored, trajectory)

    def _on_answer(self, scored: Any, trajectory: Any) -> list[Event]:
        del self._pending[scored]
        asked = self._asked.pop(scored)
        try:
            outcome = ray.get(scored, timeout=CONTROL_TIMEOUT_S)
        except RayActorError as error:
            self._start_again(error, asked)
            return []
        except RayError as error:
            cause = cause_of(error)
            if isinstance(cause, RollcallError):
                raise cause from None  # the service was away for longer than the run is patient
            if isinstance(cause, ObjectLostError):
                return [_lost(asked.produced, str(cause))]
            raise RollcallError(f"scoring failed: {cause!r}") from error
        if isinstance(outcome, TicketFailed):
            return [outcome]
        return [TicketScored(outcome, trajectory)]

    def _start_again(self, error: RayActorError, asked: _Asked) -> None:
        unanswered = [asked, *self._asked.values()]
        for reference in self._asked:
            self._pending.pop(reference, None)
        self._asked.clear()
        time.sleep(self._budget.next_delay_s(f"the scoring process died ({death_of(error)})"))
        self.restarts += 1
        self.handle = self._spawn()
        for item in unanswered:
            self._ask(item)


def _lost(produced: Produced, detail: str) -> TicketFailed:
    return TicketFailed(
        produced.header,
        reason="object_lost",
        detail=" ".join(detail.split())[:200],
        state_lost=False,
    )
