"""The parameter server of a run on Ray, kept at work. All that it had to keep is the newest weights: when it dies,
another one gets them, and readers that still ask the old one fail and are started again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from rollcall.cluster.loop.supervision import RestartBudget
from rollcall.cluster.messages.events import Event
from rollcall.deploy.runtimes.on_ray.calls import Answer, Calls
from rollcall.deploy.runtimes.on_ray.faults import CONTROL_TIMEOUT_S, START_TIMEOUT_S, cause_of, death_of

Published = Callable[[], list[Event]]
_Publication = tuple[Any, Any, Published]  # weights, who can send them, who is told

_log = logging.getLogger("rollcall")


class RayParameterServer:
    """One process, or the wait until another one may be started."""

    def __init__(
        self, spawn: Callable[[], Any], budget: RestartBudget, calls: Calls, *, tell_failed: Callable[[str], None]
    ) -> None:
        """`tell_failed`: why it did not start."""
        self._spawn = spawn
        self._budget = budget
        self._calls = calls
        self._tell_failed = tell_failed
        self.handle = spawn()
        self._has_answered = False  # this one
        self.newest: Any = None  # a reference to the newest weights
        self.restarts = 0
        self._sender: Any = None
        self._takes_references = True  # to weights; it says so, by their size
        self._to_publish: deque[_Publication] = deque()  # the first is under way
        self._start_at: float | None = None  # of the next one, when it has died
        self._in_doubt = False

    @property
    def is_up(self) -> bool:
        """As far as is known: not while it is being asked."""
        return self._start_at is None and not self._in_doubt

    def publish(self, weights: Any, sender: Any, then: Published) -> None:
        """One version after the other; `then` is called when it can be had."""
        self.newest, self._sender = weights, sender
        self._to_publish.append((weights, sender, then))
        if len(self._to_publish) == 1 and self._start_at is None:
            self._publish_first()

    def check(self) -> None:
        """Finds out whether it lives, which else only a publication would."""
        if self.is_up:
            self._in_doubt = True
            self._calls.expect(self.handle.running.remote(), self._on_running, owner=self, timeout_s=CONTROL_TIMEOUT_S)

    def tend(self) -> None:
        """Starts another one when its back-off is over."""
        if self._start_at is None or self._calls.clock() < self._start_at:
            return
        self._start_at = None
        self.handle, self._has_answered = self._spawn(), False
        if self.newest is not None and not self._to_publish:
            self._to_publish.append((self.newest, self._sender, list))
        if self._to_publish:
            self._publish_first()

    def doing(self) -> list[str]:
        """In words: what is waited for."""
        if self._start_at is not None:
            return ["the parameter server to be started again"]
        return ["the parameter server to take new weights"] if self._to_publish else []

    def _publish_first(self) -> None:
        weights, sender, _ = self._to_publish[0]
        reply = self.handle.publish.remote(weights, [weights] if self._takes_references else [], sender)
        self._calls.expect(reply, self._on_published, owner=self, timeout_s=START_TIMEOUT_S)

    def _on_published(self, answer: Answer) -> list[Event]:
        try:
            self._takes_references = bool(answer())
        except RayTaskError as error:
            if not isinstance(cause_of(error), ObjectLostError | RayActorError):
                raise
            _log.warning("the newest weights went with the learner, which is started again and publishes anew")
        except (RayActorError, GetTimeoutError) as error:
            self._lose(error)
            return []
        self._has_answered = True
        _, _, then = self._to_publish.popleft()
        if self._to_publish:
            self._publish_first()
        return then()

    def _on_running(self, answer: Answer) -> list[Event]:
        self._in_doubt = False
        try:
            answer()
        except (RayActorError, GetTimeoutError) as error:
            self._lose(error)
        else:
            self._has_answered = True
        return []

    def _lose(self, error: RayActorError | GetTimeoutError) -> None:
        self._calls.forget(self)
        self._calls.api.kill(self.handle)
        if not self._has_answered:
            self._tell_failed(death_of(error))
        self._in_doubt = False
        self.restarts += 1
        self._start_at = self._calls.clock() + self._budget.next_delay_s(death_of(error))
