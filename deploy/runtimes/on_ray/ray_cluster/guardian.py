"""A private cluster stands in a process group of its own: what a terminal or a batch system signals to the driver's
group reaches the driver alone, and who belongs to the cluster can be told whatever became of the driver."""

from __future__ import annotations

import importlib
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

GRACE_S = 0.5  # for the cluster to end by itself once the driver is gone

MARK = "ROLLCALL_CLUSTER"  # a variable in the environment of all that a private cluster starts

# Some of Ray's processes outlive a driver that was killed, above all one killed while it started them. The leader of
# their group waits for the driver to end, in whatever way, and then ends whoever is left. Ray's workers lead groups of
# their own, and are known by their environment; its agents overwrite theirs, and are known by their group.
_GUARDIAN = f"""
import os, shutil, signal, sys, time
import psutil
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
me, mark = os.getpid(), sys.argv[1]
print(flush=True)
sys.stdin.read()
give_up = time.monotonic() + {GRACE_S}
def is_of_the_cluster(process):
    try:
        if process.pid == me or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return os.getpgid(process.pid) == me or process.environ().get("{MARK}") == mark
    except (psutil.Error, OSError):
        return False
def left():
    return [process for process in psutil.process_iter() if is_of_the_cluster(process)]
while left() and time.monotonic() < give_up:
    time.sleep(0.1)
while found := left():
    for process in found:
        try:
            process.kill()
        except psutil.Error:
            pass
    time.sleep(0.1)
shutil.rmtree(sys.argv[2], ignore_errors=True)
"""


class Guardian:
    """Leads the process group of one private cluster, and ends with it."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the cluster's sockets and logs; it goes with the last of its processes."""
        self._mark = secrets.token_hex(8)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _GUARDIAN, self._mark, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )

    @contextmanager
    def leads_what_ray_starts(self) -> Iterator[None]:
        """Until its end what Ray starts from this process joins the group; so does what is started by that."""
        assert self._process.stdout is not None
        self._process.stdout.readline()  # from now on it hears the end of this process, however soon that comes
        services: Any = importlib.import_module("ray._private.services")
        popen = services.ConsolePopen

        def start(*args: Any, env: Mapping[str, str], **kwargs: Any) -> Any:
            return popen(*args, env={**env, MARK: self._mark}, process_group=self._process.pid, **kwargs)

        services.ConsolePopen = start
        try:
            yield
        finally:
            services.ConsolePopen = popen

    def dismiss(self, timeout_s: float = 10.0) -> None:
        """The cluster was shut down: what is left of it is ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
