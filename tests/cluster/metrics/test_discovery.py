"""Endpoints say where they are in files, and nobody's file outlives its truth for long."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.metrics.discovery import FOLDER, announce, answers, endpoints


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def written(runs: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in (runs / FOLDER).glob("*.json")}


def test_an_endpoint_is_announced_as_prometheus_reads_it_and_gone_at_its_end(tmp_path: Path) -> None:
    here = announce(tmp_path, "run-1", "127.0.0.1:9464", {"run": "run-1", "role": "driver"})
    assert here is not None
    wanted = [{"targets": ["127.0.0.1:9464"], "labels": {"run": "run-1", "role": "driver"}}]
    assert written(tmp_path) == {"run-1": wanted}
    here.withdraw()
    assert not (tmp_path / FOLDER).exists()
    here.withdraw()  # twice does nothing


def test_a_url_is_announced_by_its_address_and_who_listens_everywhere_by_one_that_others_reach(tmp_path: Path) -> None:
    announce(tmp_path, "service", "http://127.0.0.1:8470", {})
    announce(tmp_path, "pod", "0.0.0.0:9464", {})
    found = written(tmp_path)
    assert found["service"][0]["targets"] == ["127.0.0.1:8470"]
    (target,) = found["pod"][0]["targets"]
    assert target.endswith(":9464") and not target.startswith("0.0.0.0")


def test_who_takes_an_address_takes_it_from_a_dead_run(tmp_path: Path) -> None:
    announce(tmp_path, "killed", "127.0.0.1:9464", {"run": "killed"})
    announce(tmp_path, "other", "127.0.0.1:9465", {"run": "other"})
    announce(tmp_path, "next", "127.0.0.1:9464", {"run": "next"})
    assert written(tmp_path).keys() == {"other", "next"}


def test_a_killed_runs_file_stays_a_day_as_a_target_that_is_down(tmp_path: Path, listener: socket.socket) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    gone = f"127.0.0.1:{closed.getsockname()[1]}"
    closed.close()
    alive = f"127.0.0.1:{listener.getsockname()[1]}"
    for name, address in (("fresh", gone), ("old", gone), ("old-and-alive", alive)):
        path = tmp_path / FOLDER / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([{"targets": [address], "labels": {}}]))
        if name != "fresh":
            os.utime(path, (time.time() - 100_000,) * 2)
    announce(tmp_path, "mine", "127.0.0.1:1", {})
    assert written(tmp_path).keys() == {"fresh", "old-and-alive", "mine"}


def test_a_directory_that_cannot_be_written_keeps_nobody_from_running(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file is in the way")
    assert announce(tmp_path, "run", "127.0.0.1:1", {}) is None


def test_files_that_mean_nothing_have_no_targets(tmp_path: Path) -> None:
    for name, text in (("cut", '[{"targets": ["127'), ("list", "[3]"), ("good", '[{"targets": ["a:1", "b:2"]}]')):
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / ".aside.json").write_text("[]")
    assert {path.stem: targets for path, targets in endpoints(tmp_path)} == {
        "cut": [],
        "list": [],
        "good": ["a:1", "b:2"],
    }


def test_somebody_answers_only_where_somebody_listens(listener: socket.socket) -> None:
    assert answers(f"127.0.0.1:{listener.getsockname()[1]}")
    assert not answers("127.0.0.1:1") and not answers("nonsense")
