"""What a private Ray cluster stands on is killed; the same command starts another, and the run goes on from its newest
checkpoint."""

from __future__ import annotations

import contextlib
import time

import psutil
import pytest

from tests.faults.test_processes_die import assert_books_balance
from tests.runs import Bench
from tests.waiting import eventually

WAITED_S = 180.0  # a cluster and its members start in 20 s, on a loaded machine in a minute or two


@pytest.mark.long
@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
def test_a_run_whose_cluster_is_killed_goes_on_with_another_within_the_same_command(bench: Bench, victim: str) -> None:
    run = bench.train("total_learner_steps=150", "actors.num=1", "checkpoint.every_steps=5")
    run.wait_for_step(20)
    children = psutil.Process(run.process.pid).children(recursive=True)
    before = [child for child in children if "redis" not in child.name()]
    run.kill(f"/{victim}")
    began = time.monotonic()
    epochs = eventually(lambda: [line for line in run.steps() if line["epoch"] > 1], WAITED_S, "steps of a new epoch")
    assert epochs[0]["step"] >= 15, "it goes on from the newest checkpoint"
    print(f"{victim}: {time.monotonic() - began:.1f} s until the next step")
    run.wait()
    assert run.process.returncode == 0, run.errors
    assert [record["step"] for record in run.steps()] == list(range(150))
    assert_books_balance(bench, run)
    assert run.summary["restarts"] >= 1
    assert "ray_lost" in (run.directory / "events.jsonl").read_text()
    assert not any(child.is_running() for child in before), "nobody of the first cluster is left"


@pytest.mark.long
def test_a_cluster_that_is_lost_too_often_ends_the_run_in_its_own_words(bench: Bench) -> None:
    run = bench.train("total_learner_steps=100000", "actors.num=1", "supervision.max_restarts=0")
    run.wait_for_step(12)
    began = time.monotonic()
    run.kill("/gcs_server")
    run.wait()
    assert time.monotonic() - began < 30
    assert run.process.returncode == 1
    (line,) = run.errors.strip().splitlines()
    assert "gcs_server" in line and f"rollcall resume {run.directory}" in line
    assert run.summary["status"] == "failed" and "gcs_server" in run.summary["error"]
    assert run.summary["ledger"] is not None
    resumed = bench.start("resume", "run", "total_learner_steps=20").wait()
    assert resumed.process.returncode == 0, resumed.errors
    assert_books_balance(bench, resumed)


@pytest.mark.long
@pytest.mark.parametrize(
    ("there", "victim"), [("raylet/raylet", "/gcs_server"), ("LearnerProcess", "/raylet")], ids=["starting", "started"]
)
def test_a_cluster_that_is_killed_before_the_run_begins_is_started_again(bench: Bench, there: str, victim: str) -> None:
    run = bench.train("total_learner_steps=3", "actors.num=1")
    eventually(lambda: _has(run.process.pid, there), 120, there)
    run.kill(victim)
    run.wait()
    assert run.process.returncode == 0, run.errors
    assert_books_balance(bench, run)


def _has(pid: int, title: str) -> bool:
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since: many that start Ray are short
            if title in " ".join(child.cmdline()):
                return True
    return False
