"""Looks after the two processes that a private cluster is: its store of facts (GCS) and its raylet. Without them Ray
waits for a minute, and then aborts whoever is connected, in the middle of whatever it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import psutil

from rollcall.cluster.errors import ClusterLost

EVERY_S = 0.2
_NAMES = {"gcs_server": "its store of facts (gcs_server)", "raylet": "its raylet"}


class ClusterWatch:
    """Of those that this process has started."""

    def __init__(self, children: Iterable[psutil.Process]) -> None:
        self._watched: list[tuple[str, psutil.Process]] = []
        self.see(children)
        self._next = 0.0
        self._dismissed = threading.Event()

    def check(self, *, now: bool = False) -> None:
        """Cheap enough for a loop; `now`: somebody has reason to ask.

        Raises:
          ClusterLost: saying who is gone.
        """
        clock = time.monotonic()
        if clock < self._next and not now:
            return
        self._next = clock + EVERY_S
        if gone := [what for what, process in self._watched if not _lives(process)]:
            raise ClusterLost(f"the private Ray cluster is lost: {' and '.join(gone)} died")

    @property
    def is_lost(self) -> bool:
        return not all(_lives(process) for _, process in self._watched)

    def guard(
        self,
        after_s: float,
        at_worst: Callable[[], None],
        *,
        children: Callable[[], Iterable[psutil.Process]] = tuple,
        every_s: float = 1.0,
    ) -> None:
        """From a thread of its own: `at_worst` is called once a cluster was seen lost for so long (of looks: a machine
        that slept has not looked), and nobody has dismissed the guard. For a process that stands in a call of Ray's,
        which no exception reaches. `children`: more of those to look after, while a cluster starts."""

        def look() -> None:
            seen_s = 0.0
            while not self._dismissed.wait(every_s):
                self.see(children())
                seen_s = seen_s + every_s if self.is_lost else 0.0
                if seen_s >= after_s:
                    at_worst()
                    return

        threading.Thread(target=look, name="cluster guard", daemon=True).start()

    def see(self, children: Iterable[psutil.Process]) -> None:
        """Looks after those that are not known yet, too."""
        known = [process for _, process in self._watched]
        self._watched += [
            (_NAMES[name], child) for child in children if (name := _name(child)) in _NAMES and child not in known
        ]

    def dismiss(self) -> None:
        """Ends the guard."""
        self._dismissed.set()

    def end(self) -> None:
        """Whatever is left of a lost one, with all that runs on it."""
        left = [child for _, process in self._watched if _lives(process) for child in _all_of(process)]
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def _all_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""
