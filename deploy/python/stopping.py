"""When a program wants a run to end: once an event is set, or once a function of the newest record says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from rollcall.deploy.report.recorders import Record


@runtime_checkable
class Event(Protocol):
    """threading.Event, multiprocessing.Event, asyncio.Event."""

    def is_set(self) -> bool: ...


Stop = Event | Callable[[Record], bool] | None


class StopWatch:
    """Asks `stop`, and remembers that it said yes. As a recorder it hears of every learner step and every evaluation;
    a record of an evaluation has `mean`, one of a step has what metrics.jsonl has."""

    def __init__(self, stop: Stop) -> None:
        """Raises ValueError: for what is neither."""
        if stop is not None and not isinstance(stop, Event) and not callable(stop):
            raise ValueError(f"stop is a {type(stop).__name__}: give an event, or a function of the newest record")
        self._stop: Any = stop
        self._said = False

    def requested(self) -> bool:
        return self._said or (isinstance(self._stop, Event) and bool(self._stop.is_set()))

    def on_start(self, info: Record) -> None: ...

    def on_step(self, record: Record) -> None:
        self._ask(record)

    def on_eval(self, record: Record) -> None:
        self._ask(record)

    def on_event(self, kind: str, text: str) -> None: ...

    def close(self, summary: Record) -> None: ...

    def _ask(self, record: Record) -> None:
        if self._stop is not None and not isinstance(self._stop, Event):
            self._said = bool(self._stop(record)) or self._said
