"""What the probe sees of a real Redis, of a real ledger and of the disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.metrics.probe import MetricsProbe
from rollcall.cluster.metrics.run_metrics import RunMetrics
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import Store, open_store

LABELS: dict[str, Any] = {"run": "r", "policy": "p", "env": "e"}


def value(metrics: RunMetrics, name: str, **more: str) -> float | None:
    return metrics.registry.get_sample_value(f"rollcall_{name}", LABELS | more)


def test_the_ledgers_counts_are_told_by_how_attempts_ended(store: Store, tmp_path: Path) -> None:
    ledger, metrics = Ledger(store, tickets_per_step=2), RunMetrics(**LABELS)
    probe = MetricsProbe(metrics, store, tmp_path, every_s=3600)
    try:
        probe.look()
        assert value(metrics, "redis_up") == 1 and (value(metrics, "redis_ping_seconds") or 0) > 0
        assert value(metrics, "tickets_issued_total") is None, "nothing is claimed of books that nobody opened"
        ledger.open_epoch()
        ledger.issue([(0, 1), (1, 1), (2, 1)])
        ledger.produced([((0, 1), 0), ((1, 1), 0)])
        ledger.commit(0, [(0, 1), (1, 1)])
        ledger.drop([((2, 1), "deadline", False)])
        probe.look()
    finally:
        probe.stop()
    assert value(metrics, "tickets_issued_total") == 3
    assert value(metrics, "tickets_total", outcome="committed") == 2
    assert value(metrics, "tickets_total", outcome="deadline") == 1
    assert value(metrics, "tickets_total", outcome="rolled_back") == 0


def test_the_disk_and_the_newest_whole_checkpoint_are_measured(store: Store, tmp_path: Path) -> None:
    for name, size in (("step-00000001", 10), ("step-00000002", 3000)):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").write_bytes(b"x" * size)
    (tmp_path / "checkpoints" / "step-00000003").mkdir()  # being written
    metrics = RunMetrics(**LABELS)
    probe = MetricsProbe(metrics, store, tmp_path, every_s=3600)
    try:
        probe.look()
    finally:
        probe.stop()
    assert value(metrics, "last_checkpoint_bytes") == 3000
    free, size_ = value(metrics, "disk_free_bytes"), value(metrics, "disk_size_bytes")
    assert free is not None and size_ is not None and 0 < free < size_


def test_a_redis_that_is_away_is_told_and_holds_nobody_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(RedisConfig(operation_timeout_s=0.5), tmp_path) as store:
        metrics = RunMetrics(**LABELS)
        probe = MetricsProbe(metrics, store, tmp_path, every_s=3600)
        probe.look()
        assert value(metrics, "redis_up") == 1
        assert store._server is not None
        store._server.stop()
        began = time.monotonic()
        probe.look()
        assert value(metrics, "redis_up") == 0 and time.monotonic() - began < 2
        probe.stop()
    assert capsys.readouterr().err == ""
