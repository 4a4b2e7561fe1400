"""Which Ray cluster a run uses: the one of RAY_ADDRESS, else a private local one that ends with the command, even when
the command is killed. Knows nothing of what runs there."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from rollcall.cluster.errors import BadInput

OBJECT_STORE_BYTES = 1 << 30

# Some of Ray's agents outlive a driver that was killed. This waits for the driver to end, in whatever way, and then
# ends those processes that were the driver's: by their ids, and by when they were started, since ids are used again.
_GUARDIAN = """
import json, sys, time
import psutil
started = json.loads(sys.stdin.readline() or "[]")
sys.stdin.read()
give_up = time.monotonic() + 5
def left():
    for pid, created in started:
        try:
            process = psutil.Process(pid)
            if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.NoSuchProcess:
            pass
while any(left()) and time.monotonic() < give_up:
    time.sleep(0.2)
for process in left():
    process.kill()
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is connected to."""

    guardian: subprocess.Popen[str] | None  # of a private one

    def close(self) -> None:
        """Disconnects; a private cluster ends."""
        import ray

        ray.shutdown()
        if self.guardian is not None:
            assert self.guardian.stdin is not None
            with suppress(BrokenPipeError):
                self.guardian.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self.guardian.wait(timeout=10)


def connect(*, num_cpus: int) -> Cluster:
    """Connects to RAY_ADDRESS, or starts a local cluster with room for `num_cpus` processes of ours.

    Raises:
      BadInput: when the cluster of RAY_ADDRESS does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A run's own metrics go through the driver; Ray's agent would take a core's share on a small machine.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    # At its end Ray would kill every child of this process, Redis and the guardian among them, in mid-write.
    os.environ.setdefault("RAY_kill_child_processes_on_worker_exit", "false")
    address = os.environ.get("RAY_ADDRESS")
    with warnings.catch_warnings(), _our_signals():
        warnings.simplefilter("ignore")
        return _join(address) if address else _start(num_cpus)


def _join(address: str) -> Cluster:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason})") from None
    return Cluster(None)


def _start(num_cpus: int) -> Cluster:
    import ray

    # Ray lets its workers step back behind everything else (niceness 15): here they are the work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    guardian = subprocess.Popen(
        [sys.executable, "-c", _GUARDIAN], stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    ray.init(
        num_cpus=max(num_cpus, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )
    assert guardian.stdin is not None
    guardian.stdin.write(json.dumps(list(_children(besides=guardian.pid))) + "\n")
    guardian.stdin.flush()
    return Cluster(guardian)


def _children(*, besides: int) -> Iterator[tuple[int, float]]:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.pid != besides:
                yield child.pid, child.create_time()


@contextmanager
def _our_signals() -> Iterator[None]:
    """Ray installs handlers of its own, under which a SIGTERM would end the driver without a checkpoint."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        with suppress(ValueError):  # not in the main thread: then nothing was changed either
            for number, handler in before.items():
                signal.signal(number, handler)
