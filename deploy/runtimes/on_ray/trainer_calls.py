"""A preference trainer in a Ray actor of its own, as a preference gate asks it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.messages.events import Event, Handle
from rollcall.deploy.kinds.preference_trainer import TrainerReport
from rollcall.deploy.runtimes.on_ray.calls import Answer, Calls
from rollcall.deploy.runtimes.on_ray.faults import cause_of, death_of, is_raised, raised_in
from rollcall.deploy.runtimes.preference_gate import TrainerLost


class RayTrainerCalls:
    """A TrainerCalls. An answer wakes the driver's one wait."""

    def __init__(self, spawn: Callable[[], Any], calls: Calls, *, tell_failed: Callable[[str], None]) -> None:
        """`tell_failed`: why it did not start."""
        self._spawn = spawn
        self._calls = calls
        self.handle: Any = None
        self._answer: Answer | None = None
        self._beats_asked = False
        self._beats = 0
        self._tell_failed = tell_failed
        self._has_answered = False  # this process

    def start(self) -> None:
        self._calls.forget(self)
        self.end()  # what raised lives on
        self.handle = self._spawn()
        self._answer, self._beats_asked, self._has_answered = None, False, False

    def offer(self, trajectory: Handle) -> None:
        self.handle.offer.remote(trajectory)

    def advance(self, due: int) -> None:
        self._answer = None
        self._calls.expect(self.handle.advance.remote(due), self._on_answer, owner=self)

    def report(self) -> TrainerReport | None:
        if self._answer is None:
            return None
        try:
            report: TrainerReport = self._answer()
        except RayActorError as error:
            if error.actor_init_failed:  # its code raised, as another one's would
                raise RollcallError(f"the preference trainer did not start: {death_of(error)}") from error
            if not self._has_answered:
                self._tell_failed(death_of(error))
            raise TrainerLost(f"the preference trainer died ({death_of(error)})") from None
        except RayError as error:
            cause = cause_of(error)
            if isinstance(cause, RollcallError):
                raise cause from None
            detail = raised_in("the preference trainer", error, "logs/preference-trainer.log")
            raise TrainerLost(detail, raised=is_raised(error)) from error
        self._has_answered = True
        return report

    def beats(self) -> int:
        if not self._beats_asked:
            self._beats_asked = True
            self._calls.expect(self.handle.get_beats.remote(), self._on_beats, owner=self)
        return self._beats

    def end(self) -> None:
        if self.handle is not None:
            ray.kill(self.handle)

    def _on_answer(self, answer: Answer) -> list[Event]:
        self._answer = answer
        return []

    def _on_beats(self, answer: Answer) -> list[Event]:
        self._beats_asked = False
        with suppress(RayError):  # where it has died, the answer that is waited for says so too
            self._beats = answer()
            self._has_answered = True
        return []
