"""How far a run is, by the steps that its metrics.jsonl tells of: a line of it is written once a step is committed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

HANG_S = 120.0  # without progress, on a machine that does nothing else
_TAIL_BYTES = 1 << 14


def patience_s(quiet_s: float) -> float:
    """Longer where the machine has more to do than it has cores; no more than three times."""
    return quiet_s * min(3.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


class Hang(Exception):
    """Nothing moved for too long."""


class Progress:
    """Of one run. A restore takes lines away: what counts since `mark` counts from where it went back to."""

    def __init__(self, metrics: Path) -> None:
        self._metrics = metrics
        self._seen: tuple[int, ...] = ()
        self._step = -1
        self._least = -1

    @property
    def step(self) -> int:
        """The newest that is told of; -1 before the first."""
        try:
            found = os.stat(self._metrics)
        except FileNotFoundError:
            return self._step
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen != self._seen:
            self._seen = seen
            self._step = self._last_step()
            self._least = min(self._least, self._step)
        return self._step

    def _last_step(self) -> int:
        with self._metrics.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            *whole, _ = file.read().split(b"\n")
        for line in reversed(whole):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError):
                continue
        return -1

    def mark(self) -> None:
        """From now on."""
        self._least = self.step

    def is_on_by(self, steps: int) -> bool:
        return self.step >= self._least + steps

    def wait(
        self, condition: Callable[[], bool], timeout_s: float, look: Callable[[], None], *, stall_s: float = 1e9
    ) -> None:
        """`stall_s`: for how long no step may come meanwhile."""
        began = moved = time.monotonic()
        step = self.step
        while not condition():
            look()
            now = time.monotonic()
            if self.step != step:
                step, moved = self.step, now
            if now - began > patience_s(timeout_s) or now - moved > patience_s(stall_s):
                raise Hang(f"no progress for {now - moved:.0f} s at step {step}")
            time.sleep(0.05)
