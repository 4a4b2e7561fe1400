"""The clock of a simulated run and what is to come. Time stands still while anybody works; it moves to what is next."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from rollcall.cluster.messages.events import Event


class Violation(Exception):
    """A promise that was broken. `kind` names it, whatever the numbers."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class World:
    """One clock and one queue of what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._ahead: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0
        self.events: list[Event] = []  # for the next poll

    def clock(self) -> float:
        return self.now

    def after(self, delay_s: float, action: Callable[[], object]) -> None:
        self._number += 1
        heapq.heappush(self._ahead, (self.now + delay_s, self._number, action))

    def tell(self, event: Event, delay_s: float) -> None:
        self.after(delay_s, lambda: self.events.append(event))

    def comes_within(self, timeout_s: float) -> bool:
        """Whether anything happens in that time, of which perhaps nobody is told; if not, it passes."""
        if self.events or (self._ahead and self._ahead[0][0] <= self.now + timeout_s):
            return True
        self.now += timeout_s
        return False

    def advance(self, gathers_s: float) -> list[Event]:
        """To the next event, and to those that come within `gathers_s`.

        Raises:
          Violation: nothing will ever happen again.
        """
        while not self.events:
            if not self._ahead:
                raise Violation("deadlock", f"nothing will ever happen again, at {self.now:.1f} s")
            self._step()
        until = self.now + gathers_s
        while gathers_s and self._ahead and self._ahead[0][0] <= until:
            self._step()
        events, self.events = self.events, []
        return events

    def everybody_dies(self) -> None:
        """What was to come, does not."""
        self._ahead.clear()
        self.events.clear()

    def _step(self) -> None:
        at, _, action = heapq.heappop(self._ahead)
        self.now = max(self.now, at)
        action()
