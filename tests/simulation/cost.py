"""What a ticket costs the driver, by the number of actors: calls of Python functions, round trips to Redis and bytes
over them, and CPU time. Counts do not depend on how busy a machine is. What workers and Redis do is not counted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import FrameType
from typing import Any
from unittest.mock import patch

from rollcall.cluster.loop.coordinator import Coordinator
from tests.simulation.drive import run
from tests.simulation.memory_redis import MemoryRedis
from tests.simulation.schedule import Schedule, Shape
from tests.simulation.workers import SimulatedWorkers

BATCH = 100
TICKETS = 3_000  # measured at the least
WAVES = 3  # tickets of every actor, at the least


@dataclass
class Count:
    calls: int = 0
    cpu_s: float = 0.0  # with the counting of calls in it
    round_trips: int = 0
    bytes: int = 0


def cost_table(numbers: Sequence[int] = (1, 10, 100, 1_000, 10_000)) -> dict[str, Any]:
    """Per ticket, for each number of actors; and the dearest over the cheapest."""
    rows = {number: cost_of_a_ticket(number) for number in numbers}
    spread = {
        name: round(max(row[name] for row in rows.values()) / min(row[name] for row in rows.values()), 2)
        for name in ("calls", "round_trips", "bytes")
    }
    return {"per_ticket": rows, "spread": spread}


def cost_of_a_ticket(actors: int, *, tickets: int = TICKETS) -> dict[str, float]:
    """In batches of as many tickets whatever the number of actors; the lag keeps them all at work."""
    steps = -(-max(tickets, WAVES * actors) // BATCH)
    count = Count()
    with _counted(count):
        outcome = run(_Sized(seed=0, actors=actors, batch=BATCH, steps=steps, quiet=True))
    assert not outcome.violation, outcome.text
    tickets = outcome.tickets  # those given up and made again among them
    return {
        "tickets": tickets,
        "calls": round(count.calls / tickets, 1),
        "cpu_us": round(1e6 * count.cpu_s / tickets, 1),
        "round_trips": round(count.round_trips / tickets, 3),
        "bytes": round(count.bytes / tickets, 1),
    }


class _Sized(Schedule):
    """With a lag that keeps all actors at work, short tails and one checkpoint at each end."""

    @cached_property
    def shape(self) -> Shape:
        assert self.actors and self.batch and self.steps
        lag = -(-self.actors // self.batch)
        return Shape(self.actors, self.batch, self.steps, lag, False, False, False, False, 10**9, 1, None, 3.0, 0.0)


@contextmanager
def _counted(count: Count) -> Iterator[None]:
    """What the loop does between its first ticket and its last; not what the workers do, nor Redis."""
    loop = Coordinator.run
    within = [False]

    def profile(frame: FrameType, event: str, argument: object) -> None:
        count.calls += event == "call"

    def run_counted(self: Coordinator) -> None:
        within[0], began = True, time.process_time()
        sys.setprofile(profile)
        try:
            loop(self)
        finally:
            sys.setprofile(None)
            within[0] = False
            count.cpu_s += time.process_time() - began

    def apart(method: Callable[..., Any]) -> Callable[..., Any]:
        def uncounted(*arguments: Any, **named: Any) -> Any:
            sys.setprofile(None)
            began = time.process_time()
            try:
                return method(*arguments, **named)
            finally:
                if within[0]:
                    count.cpu_s -= time.process_time() - began
                    sys.setprofile(profile)

        return uncounted

    def over_the_wire(method: Callable[..., Any]) -> Callable[..., Any]:
        def measured(self: MemoryRedis, *arguments: Any) -> Any:
            reply = method(self, *arguments)
            if within[0]:
                count.round_trips += 1
                count.bytes += sum(map(_wire_bytes, arguments)) + _wire_bytes(reply)
            return reply

        return measured

    outside = [name for name in vars(SimulatedWorkers) if name.startswith("submit_") or name == "poll"]
    with ExitStack() as stack:
        stack.enter_context(patch.object(Coordinator, "run", run_counted))
        for name in outside:
            stack.enter_context(patch.object(SimulatedWorkers, name, apart(getattr(SimulatedWorkers, name))))
        for name in ("evalsha", "eval", "execute_command"):
            measured = apart(over_the_wire(getattr(MemoryRedis, name)))
            stack.enter_context(patch.object(MemoryRedis, name, measured))
        yield


def _wire_bytes(value: object) -> int:
    """As Redis's protocol writes it: a text with its length, and two line ends."""
    if isinstance(value, list):
        return 4 + sum(map(_wire_bytes, value))
    return 7 + len(str(value))
