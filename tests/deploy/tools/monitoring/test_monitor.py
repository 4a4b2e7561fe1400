"""`rollcall monitor` with the real Prometheus, over endpoints that announce themselves as drivers do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollcall.cluster.books.ledger_table import LedgerCounts
from rollcall.cluster.loop.run import RunState
from rollcall.cluster.metrics.discovery import FOLDER, announce
from rollcall.cluster.metrics.metrics_config import MetricsConfig
from rollcall.cluster.metrics.run_metrics import RunMetrics
from rollcall.deploy.cli import main
from rollcall.deploy.tools.monitoring import monitor
from tests.needs import needs
from tests.waiting import eventually

STATE = RunState(0.5, 4, 1, acting=2, scoring=0, queued=1, training=4, checkpoint_step=1, checkpoint_unix_s=time.time())
STEP = {
    **{"step": 0, "policy_version": 1, "lag_max": 1, "lag_mean": 0.5, "bound_fraction": 0.7, "loss": 0.1},
    **{"wait_batch_s": 0.1, "update_s": 0.2, "publish_s": 0.01, "step_s": 0.3, "act_s": 0.1},
    **{"grad_norm": 0.5, "learning_rate": 1e-3, "entropy": 0.6, "skipped": False},
}
CONTROL = STEP | {"return_mean": 20.0, "env_steps": 100, "episodes": 3, "env_restarts": 0}
LANGUAGE = STEP | {
    **{"reward_mean": 0.5, "exact_match": 0.5, "unparsed_fraction": 0.0, "truncated_fraction": 0.0},
    **{"degenerate_fraction": 0.1, "length_mean": 5.0, "mismatch": 0.01, "tokens": 100, "trained_tokens": 100.0},
    **{"degenerate_dropped": 0, "apply_s": 0.01, "engine_steps": 5, "engine_running": 4.0, "engine_waiting": 0.0},
    **{"engine_kv_cache_usage": 0.1, "engine_cached_tokens": 1, "engine_computed_tokens": 9},
    **{"engine_canary": 1e-5, "engine_canary_bound": 1e-3, "fresh_fraction": 0.1, "fresh_mismatch": 1e-5},
}


@contextmanager
def driver(runs: Path, name: str, record: dict[str, Any], *, whole: bool = True) -> Iterator[RunMetrics]:
    """A run that has made a step. Not `whole`: it says that it trains, and nothing of where its tickets are."""
    kind: Any = "language" if "tokens" in record else "control"
    metrics = RunMetrics(run=name, policy="policy", env="e", kind=kind)
    metrics.describe(version="1", recipe="r", algorithm="ppo", runtime="ray")
    metrics.enter("training")
    metrics.on_step(record)
    metrics.on_redis(0.001)
    metrics.on_disk(free_bytes=2**40, size_bytes=2**41)
    if whole:
        metrics.watch(lambda: STATE)
        metrics.on_ledger(LedgerCounts(issued=9, committed=5, in_flight=4))
    port = metrics.serve(MetricsConfig())
    here = announce(runs, name, f"127.0.0.1:{port}", {"run": name, "role": "driver"})
    assert here is not None
    try:
        yield metrics
    finally:
        here.withdraw()
        metrics.close()


def start(runs: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A monitor that watches, and its Prometheus's URL. It sees no Ray cluster: others may be alive on this machine."""
    no_ray = ("--ray-targets", str(runs / "no-ray.json"))
    process = subprocess.Popen(
        [sys.executable, "-m", "rollcall.deploy.cli", "monitor", str(runs), "--every", "1s", *no_ray, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("watching"):
            break
    assert said and said[0].startswith("Prometheus: http://127.0.0.1:"), process.communicate()
    return process, said[0].split()[1]


def asked(url: str, query: str) -> list[Any]:
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=10) as reply:
        found: list[Any] = json.load(reply)["data"]["result"]
        return found


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=20)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@needs("prometheus")
def test_runs_are_found_watched_and_asked_about_and_everything_ends_with_ctrl_c(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    process, url = start(runs, "--port", "0")
    server = psutil.Process(json.loads((runs / ".monitor" / "monitor.json").read_text())["pid"])
    try:
        assert main.main(["monitor", str(runs), "--check", "--wait", "0"]) == 0
        assert "Targets: neither a run nor a reward service is scraped" in capsys.readouterr().out
        with ExitStack() as stack:
            stack.enter_context(driver(runs, "odd", CONTROL, whole=False))
            eventually(lambda: len(asked(url, 'up{run="odd"} == 1')) == 1, 15)
            assert main.main(["monitor", str(runs), "--check", "--wait", "0"]) == 1
            failing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fails")]
            assert any("Where the tickets are: rollcall_tickets_acting has no sample" in line for line in failing)
            stack.enter_context(driver(runs, "walker", CONTROL))
            stack.enter_context(driver(runs, "talker", LANGUAGE))
            assert main.main(["monitor", str(runs), "--check", "--wait", "90"]) == 0, capsys.readouterr().out
            said = capsys.readouterr().out
            assert "empty Rollcall / Reward service / Up: no reward service is scraped" in said
            assert "no Ray cluster with metrics is joined" in said
            assert said.splitlines()[-1].endswith(" 0 fail")
            # Whoever is there already is not started twice.
            assert main.main(["monitor", str(runs)]) == 0
            assert url in capsys.readouterr().out
        assert [address.laddr.ip for address in server.net_connections() if address.status == "LISTEN"] == ["127.0.0.1"]
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = ended(process)
    assert (process.returncode, errors) == (0, "")
    assert not server.is_running() and not (runs / ".monitor" / "monitor.json").exists()


@needs("prometheus")
def test_prometheus_never_outlives_a_monitor_that_is_killed_and_an_alert_is_a_line(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with driver(runs, "lagging", CONTROL | {"lag_max": 7}):
        process, _ = start(runs, "--port", "0", "--runbook", "https://example.org/runbook")
        server = psutil.Process(json.loads((runs / ".monitor" / "monitor.json").read_text())["pid"])
        assert process.stdout is not None
        line = process.stdout.readline()
        process.kill()
        ended(process)
    assert "firing" in line and "lagging: a batch was 7 versions behind" in line
    assert "https://example.org/runbook#rollcalllagabovebound" in line
    eventually(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 15)


def test_without_prometheus_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert main.main(["monitor", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no prometheus on PATH" in error and "apt-get install prometheus" in error and error.count("\n") == 1


def test_a_directory_that_is_not_there_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["monitor", str(tmp_path / "rnus")]) == 2
    assert "rnus" in capsys.readouterr().err


@needs("prometheus")
def test_a_port_that_is_taken_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main.main(["monitor", str(tmp_path), "--port", str(port)]) == 2
    assert f"--port = {port} (command line): in use" in capsys.readouterr().err


def test_who_has_died_is_forgotten_after_a_while_and_not_before(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as alive:
        announce(tmp_path, "alive", f"127.0.0.1:{alive.getsockname()[1]}", {})
        announce(tmp_path, "dead", "127.0.0.1:1", {})
        first_seen: dict[Path, float] = {}
        monitor.forget_the_dead(tmp_path, first_seen=first_seen, after_s=3600)
        assert {path.stem for path in (tmp_path / FOLDER).iterdir()} == {"alive", "dead"}
        first_seen = {path: at - 3601 for path, at in first_seen.items()}
        monitor.forget_the_dead(tmp_path, first_seen=first_seen, after_s=3600)
        assert {path.stem for path in (tmp_path / FOLDER).iterdir()} == {"alive"}
