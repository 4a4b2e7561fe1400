"""The reward service, and the process that asks it, are killed in mid-run: training waits and goes on, no reward is
made up, and every trajectory names the version that scored it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollcall.cluster.books.consumption import LOG_NAME, read_log
from tests.runs import Bench, Run
from tests.strangers import listens, what_a_stranger_can_do

SCORER = '''
import numpy as np

def score(item):
    """Far from every reward of CartPole's own: 1 a step."""
    return 5.0 + 0 * item.segment.observations.array()[:, 0]

def picky(item):
    if int(item.id.split(".")[0]) % 7 == 3:
        raise RuntimeError("not this one")
    return score(item)

def broken(item):
    print("looking at", item.id)
    raise RuntimeError("the judge's API key is missing")

def two(item, weight):
    return 1.0
'''
LONG = ("total_learner_steps=60", "actors.num=2", "checkpoint.every_steps=20", "reward=scoring:score")


@pytest.fixture
def scored(bench: Bench) -> Bench:
    (bench.folder / "scoring.py").write_text(SCORER)
    return bench


def finished(bench: Bench, run: Run, steps: int) -> dict[str, Any]:
    run.wait()
    assert run.process.returncode == 0, run.errors
    code, text = bench.audit()
    assert code == 0, text
    books: dict[str, Any] = run.summary["ledger"]
    assert books["committed"] == steps * 4 and books["in_flight"] == 0
    assert [record["step"] for record in run.steps()] == list(range(steps))
    # Every reward is the scorer's. The mean has no other value to hide a 0 that was made up.
    assert {record["reward_mean"] for record in run.steps()} == {5.0}
    lines = read_log(Path(run.directory) / "logs" / LOG_NAME).lines
    versions = {consumed.reward_version for _, consumed in lines}
    assert len(versions) == 1 and all(versions)
    return books


@pytest.mark.long
def test_a_killed_service_is_waited_for_and_a_killed_scoring_process_asks_again(scored: Bench) -> None:
    run = scored.train(*LONG, "metrics.enabled=true")
    run.wait_for_step(10)
    assert {*listens(run.process.pid).values()} == {"127.0.0.1"}
    if os.geteuid() == 0:  # only root can become another user
        # Numbers, whether it is up, and the service's manual: nothing of the run's.
        open_to_all = {"/metrics", "/healthz", "/", "/docs"}
        did = what_a_stranger_can_do(run.process.pid, run.directory)
        assert [what for what in did if what.lstrip("heard 0123456789") not in open_to_all] == []
    run.kill("rollcall.reward_service.service.private")
    run.wait_for_step(30)
    run.kill("ScoringProcess")
    books = finished(scored, run, 60)
    assert "the reward service died" in (run.directory / "events.jsonl").read_text()
    assert run.summary["restarts"] == 1
    assert books["dropped"] == 0  # trajectories outlive whoever asked about them


def test_what_a_scorer_refuses_is_dropped_with_its_reason_and_given_up_in_the_end(scored: Bench) -> None:
    run = scored.train("total_learner_steps=8", "reward=scoring:picky", "runtime=serial")
    books = finished(scored, run, 8)
    assert books["dropped_by_reason"]["unscored"] == 2 * books["dropped_by_reason"]["attempts_exhausted"] > 0


@pytest.mark.parametrize("runtime", ["serial", pytest.param("ray", marks=pytest.mark.prove)])
def test_a_reward_that_always_fails_ends_the_run_with_its_own_line_and_names_the_log_of_what_it_printed(
    scored: Bench, runtime: str
) -> None:
    run = scored.train("reward=scoring:broken", f"runtime={runtime}", "supervision.max_failures=30").wait()
    assert run.process.returncode == 1
    (line,) = run.errors.strip().splitlines()
    assert "the last 30 rollouts failed and none came through (supervision.max_failures=30): unscored" in line
    assert f"RuntimeError: the judge's API key is missing ({scored.folder / 'scoring.py'}, line 15, in broken)" in line
    log = run.directory / "logs" / "reward_service.log"
    assert f"what the scorer printed is in {log}" in line and "looking at 0.0" in log.read_text()
    assert (
        '    raise RuntimeError("the judge\'s API key is missing")' in (run.directory / "logs/driver.log").read_text()
    )
    assert len(run.output.splitlines()) < 30, "failures that are alike are not repeated"
    assert run.summary["ledger"]["committed"] == 0 and run.steps() == []


def test_a_reward_that_does_not_fit_is_refused_before_the_first_rollout(scored: Bench) -> None:
    for reward, words in (
        ("scoring:two", "scoring:two(item, weight) is no reward function: write def score(item)"),
        ("exact_match", "a scorer of kind exact_match takes text, and this run gives segments of steps"),
    ):
        run = scored.train(f"reward={reward}", "runtime=serial").wait()
        assert run.process.returncode == 2, run.errors
        assert words in run.errors and len(run.errors.strip().splitlines()) == 1
        assert not run.directory.exists()


def test_the_service_of_a_killed_driver_ends_with_it(scored: Bench) -> None:
    run = scored.train(*LONG, "runtime=serial", "actors.num=1")
    run.wait_for_step(2)
    service = run.find("rollcall.reward_service.service.private")
    run.process.kill()
    psutil.wait_procs([service], timeout=30)
    assert not service.is_running() or service.status() == psutil.STATUS_ZOMBIE
