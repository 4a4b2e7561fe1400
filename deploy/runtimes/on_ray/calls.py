"""The driver's one wait: what was asked of other processes, until when an answer is due, and what to do with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import ray
from ray.exceptions import GetTimeoutError, RayError

from rollcall.cluster.messages.events import Event

Answer = Callable[[], Any]  # gives what a call returned, or raises the RayError that it ended with
Then = Callable[[Answer], list[Event]]


@dataclass(slots=True, eq=False)
class _Call:
    references: Sequence[Any]
    then: Then
    owner: object
    timeout_s: float
    deadline: float
    values: dict[Any, Any] = field(default_factory=dict)


class WatchedRay:
    """What Calls uses of the module ray, for a cluster that may be lost: whoever asks a lost one for anything gets no
    answer, and is ended after STUCK_S (ray_cluster/cluster.py)."""

    wait, get = staticmethod(ray.wait), staticmethod(ray.get)

    def __init__(self, look: Callable[[], None]) -> None:
        """`look` raises where the cluster is lost."""
        self._look = look

    def kill(self, handle: Any) -> None:
        self._look()
        ray.kill(handle)

    def nodes(self) -> Any:
        self._look()
        return ray.nodes()  # type: ignore[no-untyped-call]


class Calls:
    """Calls of Ray actors that are under way."""

    def __init__(self, api: Any = ray, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`api`: what is used of the module ray: wait, get, kill and nodes."""
        self.api = api
        self.clock = clock
        self._under_way: dict[Any, _Call] = {}

    def expect(self, reference: Any, then: Then, *, owner: object, timeout_s: float = math.inf) -> None:
        """`then` is called with the answer, or with one that raises GetTimeoutError when `timeout_s` is over."""
        self.expect_all([reference], lambda answer: then(lambda: answer()[0]), owner=owner, timeout_s=timeout_s)

    def expect_all(self, references: Sequence[Any], then: Then, *, owner: object, timeout_s: float = math.inf) -> None:
        """`then` is called once: with the list of all values, or at the first error."""
        call = _Call(references, then, owner, timeout_s, self.clock() + timeout_s)
        self._under_way |= dict.fromkeys(references, call)

    def forget(self, owner: object) -> None:
        """Whatever was asked for by `owner` is of no interest any more."""
        self._under_way = {key: call for key, call in self._under_way.items() if call.owner is not owner}

    def wait(self, timeout_s: float) -> list[Event]:
        """Waits for one answer, and takes all that are there."""
        events: list[Event] = []
        for reference in self._ready(timeout_s):
            events += self._settle(reference)
        now = self.clock()
        for reference, call in list(self._under_way.items()):
            if now > call.deadline and self._under_way.get(reference) is call:
                events += self._end(call, GetTimeoutError(f"no answer within {call.timeout_s:.0f} s"))
        return events

    def _ready(self, timeout_s: float) -> list[Any]:
        references = list(self._under_way)
        if not references:
            time.sleep(timeout_s)
            return []
        ready, _ = self.api.wait(references, num_returns=1, timeout=timeout_s)
        if ready and len(references) > 1:
            ready, _ = self.api.wait(references, num_returns=len(references), timeout=0)
        return list(ready)

    def _settle(self, reference: Any) -> list[Event]:
        call = self._under_way.pop(reference, None)
        if call is None:  # an answer before it made it void
            return []
        try:
            call.values[reference] = self.api.get(reference, timeout=0)
        except RayError as error:
            return self._end(call, error)
        if len(call.values) < len(call.references):
            return []
        return call.then(lambda: [call.values[item] for item in call.references])

    def _end(self, call: _Call, error: RayError) -> list[Event]:
        for reference in call.references:
            self._under_way.pop(reference, None)

        def answer() -> NoReturn:
            raise error

        return call.then(answer)
