"""Looks after a run from the side: is Redis there, what does the ledger say, how much room is on the disk. On a thread
of its own, a few milliseconds every ten seconds. Must never write, nor make the run wait."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any, cast

import redis

from rollcall.cluster.books.ledger_table import LedgerCounts, ledger_keys
from rollcall.cluster.metrics.run_metrics import RunMetrics, directory_bytes
from rollcall.cluster.store.store import Store

PROBE_EVERY_S = 10.0


class MetricsProbe:
    """Feeds a run's metrics until it is stopped."""

    def __init__(
        self, metrics: RunMetrics, store: Store, run_directory: Path, *, every_s: float = PROBE_EVERY_S
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._directory = run_directory
        self._every_s = every_s
        _, self._attempts_key, self._counters_key, *_ = ledger_keys(store)
        self._newest: Path | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-probe", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=self._every_s)

    def look(self) -> None:
        self._look_at_redis()
        self._look_at_disk()

    def _run(self) -> None:
        self.look()
        while not self._stopping.wait(self._every_s):
            self.look()

    def _look_at_redis(self) -> None:
        # Not by Store.call, which waits for a Redis that is away: here that is the news.
        client = self._store.client
        try:
            began = time.perf_counter()
            client.ping()
            self._metrics.on_redis(time.perf_counter() - began)
            counters: dict[str, str] = cast(Any, client.hgetall(self._counters_key))
            if counters:
                self._metrics.on_ledger(LedgerCounts.from_counters(counters))
                self._metrics.on_unsealed(client.hlen(self._attempts_key))
        except (redis.RedisError, OSError, ValueError):
            if not self._stopping.is_set():
                self._metrics.on_redis(None)

    def _look_at_disk(self) -> None:
        try:
            usage = shutil.disk_usage(self._directory)
            self._metrics.on_disk(free_bytes=usage.free, size_bytes=usage.total)
            manifests = sorted(self._directory.glob("checkpoints/step-*/manifest.json"))
        except OSError:
            return  # the run itself will say what is wrong with its disk
        newest = manifests[-1].parent if manifests else None
        if newest is not None and newest != self._newest:
            self._metrics.on_checkpoint_size(directory_bytes(newest))
            self._newest = newest
