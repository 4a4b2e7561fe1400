"""The disk of a run fills up: a file system of a few MiB, where one may be mounted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import lack, needs
from tests.runs import Bench

pytestmark = needs("linux", "root")

SETTINGS = ("learner.compile=off", "checkpoint.every_steps=2", "redis.reconnect_timeout_s=40")


@pytest.fixture
def runs(bench: Bench) -> Iterator[Path]:
    """runs/, on a small file system of its own."""
    folder = bench.folder / "runs"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        lack("containment", f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    bench.close()
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(runs: Path) -> Path:
    """To the last block."""
    ballast = runs / "ballast"
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    os.write(file, bytes(size))
            except OSError:
                continue
    finally:
        os.close(file)
    assert shutil.disk_usage(runs).free < 1 << 12
    return ballast


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["serial", "ray"])
def test_a_run_waits_on_a_full_disk_and_goes_on_by_itself_when_there_is_room(
    bench: Bench, runs: Path, runtime: str
) -> None:
    run = bench.train("total_learner_steps=100000", f"runtime={runtime}", *SETTINGS)
    run.wait_for_step(3)
    ballast = fill(runs)
    time.sleep(4)
    assert run.process.poll() is None, run.process.communicate()
    before = len(run.steps())
    ballast.unlink()
    run.wait_for_step(before + 5, timeout_s=90)
    run.process.send_signal(signal.SIGTERM)
    run.wait()
    assert run.process.returncode == 130, run.errors
    assert run.summary["status"] == "stopped"
    assert "Traceback" not in run.output + run.errors
    assert bench.audit()[0] == 0


def test_a_run_that_is_stopped_on_a_full_disk_leaves_a_summary_one_line_and_its_last_checkpoint(
    bench: Bench, runs: Path
) -> None:
    run = bench.train("total_learner_steps=100000", "runtime=serial", *SETTINGS)
    run.wait_for_step(3)
    ballast = fill(runs)
    time.sleep(2)
    run.process.send_signal(signal.SIGTERM)
    run.wait(90)
    assert run.process.returncode in (1, 130), run.errors
    assert json.loads((run.directory / "summary.json").read_text())["status"] in ("failed", "stopped")
    told = [line for line in run.errors.splitlines() if line.startswith("rollcall: error")]
    assert len(told) <= 1 and "Traceback" not in run.errors
    ballast.unlink()
    resumed = bench.start("resume", "run", f"total_learner_steps={len(run.steps()) + 5}").wait()
    assert resumed.process.returncode == 0, resumed.errors
    assert bench.audit()[0] == 0
