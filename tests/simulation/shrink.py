"""From a schedule that breaks a promise to the least one that breaks the same promise: fewer faults, fewer
actors, smaller batches, fewer steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.simulation.drive import Outcome
from tests.simulation.schedule import Schedule

MAX_RUNS = 300


def shrink(failed: Outcome, run: Callable[[Schedule], Outcome]) -> Outcome:
    """The least that was found: leaving out any one of its faults, nothing is broken."""
    return _Shrinking(failed, run).least()


class _Shrinking:
    def __init__(self, failed: Outcome, run: Callable[[Schedule], Outcome]) -> None:
        self._run, self._runs = run, 0
        self._best = failed

    def least(self) -> Outcome:
        self._try(replace(self._best.schedule, only=frozenset(self._best.faults)))
        while True:
            before = self._best.schedule
            self._fewer_faults()
            shape = self._best.schedule.shape
            for name in ("steps", "actors", "batch"):
                self._smaller(name, getattr(shape, name))
            if self._best.schedule == before or self._runs >= MAX_RUNS:
                return self._best

    def _try(self, schedule: Schedule) -> bool:
        """Whether it breaks the same promise; then it is the best so far."""
        if self._runs >= MAX_RUNS:
            return False
        self._runs += 1
        outcome = self._run(schedule)
        if outcome.violation != self._best.violation:
            return False
        self._best = replace(outcome, schedule=replace(schedule, only=frozenset(outcome.faults)))
        return True

    def _fewer_faults(self) -> None:
        """Delta debugging (Zeller and Hildebrandt, 2002): without each part of them, in ever smaller parts."""
        size = len(self._best.faults)
        while size:
            faults: Sequence[str] = sorted(self._best.faults)
            for start in range(0, len(faults), size):
                left = frozenset(self._best.faults) - set(faults[start : start + size])
                if len(left) < len(self._best.faults):
                    self._try(replace(self._best.schedule, only=left))
            size = min(size // 2, len(self._best.faults))

    def _smaller(self, name: str, value: int) -> None:
        for smaller in sorted({1, value // 4, value // 2, value - 1} - {0}):
            if smaller < value and self._try(replace(self._best.schedule, **{name: smaller})):  # type: ignore[arg-type]
                return
