"""Stand-ins for Ray, its actors and the clock, with which the driver's side of a run is played through: nothing happens
until a test says so, and no test waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.exceptions import ActorDiedError, RayTaskError

from rollcall.cluster.loop.supervision import RestartBudget
from rollcall.deploy.runtimes.on_ray.calls import Calls


def raised(error: Exception) -> RayTaskError:
    """What a call ends with whose code raised."""
    return RayTaskError("a call", "its traceback", error)


class Reference:
    """What a call returned: nothing yet, a value, or an error."""

    def __init__(self, handle: Handle, method: str, arguments: tuple[Any, ...]) -> None:
        self.handle, self.method, self.arguments = handle, method, arguments
        self.outcome: list[Any] = []

    def answers(self, value: Any = None) -> None:
        self.outcome.append(value)


class Handle:
    """A Ray actor: remembers what was asked of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.killed = False
        self.asked: list[Reference] = []

    def __getattr__(self, method: str) -> Method:
        return Method(self, method)

    def first(self, method: str) -> Reference:
        """The oldest call of this method without an answer."""
        return next(call for call in self.asked if call.method == method and not call.outcome)

    def asked_for(self, method: str) -> list[Any]:
        """First arguments of all calls of this method."""
        return [call.arguments[0] if call.arguments else None for call in self.asked if call.method == method]

    def dies(self) -> None:
        """Whatever was asked of it ends with that."""
        for call in self.asked:
            if not call.outcome:
                call.answers(ActorDiedError())


class Method:
    def __init__(self, handle: Handle, name: str, num_returns: int = 1) -> None:
        self._handle, self._name, self._num_returns = handle, name, num_returns

    def options(self, *, num_returns: int) -> Method:
        return Method(self._handle, self._name, num_returns)

    def remote(self, *arguments: Any) -> Any:
        call = Reference(self._handle, self._name, arguments)
        self._handle.asked.append(call)
        return call if self._num_returns == 1 else (call, f"{self._name} of {self._handle.name}")


class FakeRay:
    """The part of the module ray that Calls uses, and a clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.dead_nodes: list[str] = []
        self.waited_s: list[float] = []

    def wait(self, references: Sequence[Reference], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        ready = [item for item in references if item.outcome][:num_returns]
        if not ready:
            self.waited_s.append(timeout)
        return ready, []

    def get(self, reference: Reference, *, timeout: float) -> Any:
        assert timeout == 0, "an answer that is there is not waited for"
        (value,) = reference.outcome
        if isinstance(value, Exception):
            raise value
        return value

    def kill(self, handle: Handle) -> None:
        handle.killed = True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": node_id, "Alive": False} for node_id in self.dead_nodes]

    def calls(self) -> Calls:
        return Calls(self, clock=lambda: self.now)

    def budget(self, component: str, *, max_restarts: int = 10) -> RestartBudget:
        return RestartBudget(component, max_restarts=max_restarts, window_s=600, clock=lambda: self.now)


class Spawner:
    """Starts handles, and keeps them in order."""

    def __init__(self, name: str = "process") -> None:
        self._name = name
        self.handles: list[Handle] = []

    def __call__(self, *arguments: Any) -> Handle:
        handle = Handle(f"{arguments[0] if arguments else self._name}#{len(self.handles)}")
        self.handles.append(handle)
        return handle

    @property
    def newest(self) -> Handle:
        return self.handles[-1]
