"""What envs, rewards and libraries print, RUN/logs/*.log: bounded, whatever they print and however long the run. Their
writers all append, so a log is shortened under their hands. driver.log sees to itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 26  # of a log; as much of what was before is kept beside it, as <name>.1
EVERY_S = 10.0


class PrintedLogs:
    """Looks at the logs of a run directory now and then, as the run goes on. Those on machines that do not share it are
    out of its reach."""

    def __init__(
        self, run_directory: Path, *, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = run_directory / "logs"
        self._most = most_bytes
        self._clock = clock
        self._next_s = clock() + EVERY_S

    def on_start(self, info: Mapping[str, Any]) -> None: ...

    def on_step(self, record: Mapping[str, Any]) -> None:
        if self._clock() >= self._next_s:
            self._next_s = self._clock() + EVERY_S
            self.look()

    def on_eval(self, record: Mapping[str, Any]) -> None: ...

    def on_event(self, kind: str, text: str) -> None: ...

    def close(self, summary: Mapping[str, Any]) -> None:
        self.look()

    def look(self) -> None:
        for path in self._folder.glob("*.log"):
            with suppress(OSError):  # on a full disk it is shortened all the same, without what was before
                if path.name != "driver.log" and path.stat().st_size > self._most:
                    self._shorten(path)

    def _shorten(self, path: Path) -> None:
        """What is printed between its being read and its being cut is lost."""
        try:
            with path.open("rb") as file:
                file.seek(-self._most, 2)
                file.readline()  # the rest of one
                kept = file.read()
            path.with_name(path.name + ".1").write_bytes(kept)
        finally:
            with path.open("r+b") as file:
                file.truncate(0)
