"""A preference trainer in a Ray actor of its own, as a preference gate asks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.messages.events import Handle
from rollcall.deploy.kinds.preference_trainer import TrainerReport
from rollcall.deploy.runtimes.on_ray.actors import Pending
from rollcall.deploy.runtimes.on_ray.faults import CONTROL_TIMEOUT_S, cause_of, death_of, is_raised, raised_in
from rollcall.deploy.runtimes.preference_gate import TrainerLost


class RayTrainerCalls:
    """A TrainerCalls. An answer wakes the driver's one wait through `pending`."""

    def __init__(self, spawn: Callable[[], Any], pending: Pending) -> None:
        self._spawn = spawn
        self._pending = pending
        self.handle: Any = None
        self._answer: Any = None
        self._beats_asked: Any = None
        self._beats = 0

    def start(self) -> None:
        self._pending.pop(self._answer, None)
        self.end()  # what raised lives on
        self.handle = self._spawn()
        self._answer = self._beats_asked = None

    def offer(self, trajectory: Handle) -> None:
        self.handle.offer.remote(trajectory)

    def advance(self, due: int) -> None:
        self._answer = answer = self.handle.advance.remote(due)

        def heard() -> list[Any]:
            self._pending.pop(answer, None)
            return []

        self._pending[answer] = heard

    def report(self) -> TrainerReport | None:
        if not _is_there(self._answer):
            return None
        try:
            report: TrainerReport = ray.get(self._answer, timeout=CONTROL_TIMEOUT_S)
        except RayActorError as error:
            raise TrainerLost(f"the preference trainer died ({death_of(error)})") from None
        except RayError as error:
            cause = cause_of(error)
            if isinstance(cause, RollcallError):
                raise cause from None
            detail = raised_in("the preference trainer", error, "logs/preference-trainer.log")
            raise TrainerLost(detail, raised=is_raised(error)) from error
        return report

    def beats(self) -> int:
        if self._beats_asked is not None and _is_there(self._beats_asked):
            try:
                self._beats = ray.get(self._beats_asked, timeout=CONTROL_TIMEOUT_S)
            except RayError:  # it has died: the answer that is waited for says so too
                return self._beats
            self._beats_asked = None
        if self._beats_asked is None:
            self._beats_asked = self.handle.get_beats.remote()
        return self._beats

    def end(self) -> None:
        if self.handle is not None:
            ray.kill(self.handle)


def _is_there(reference: Any) -> bool:
    ready, _ = ray.wait([reference], timeout=0, fetch_local=False)
    return bool(ready)
