"""The reward service, and the process that asks it, are killed in mid-run: training waits and goes on, no reward is
made up, and every trajectory names the version that scored it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from rollcall.cluster.consumption import LOG_NAME, read_log

SCORER = '''
import numpy as np

def score(item):
    """Far from every reward of CartPole's own: 1 a step."""
    return 5.0 + 0 * item.segment.observations.array()[:, 0]

def picky(item):
    if int(item.id.split(".")[0]) % 7 == 3:
        raise RuntimeError("not this one")
    return score(item)
'''
LONG = ("total_learner_steps=60", "actors.num=2", "checkpoint.every_steps=20", "reward=scoring:score")


@pytest.fixture
def scored(bench: Any) -> Any:
    (bench.folder / "scoring.py").write_text(SCORER)
    return bench


def finished(bench: Any, run: Any, steps: int) -> dict[str, Any]:
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


def test_a_killed_service_is_waited_for_and_a_killed_scoring_process_asks_again(scored: Any) -> None:
    run = scored.train(*LONG)
    run.wait_for_step(10)
    run.kill("rollcall.reward_service.private")
    run.wait_for_step(30)
    run.kill("ScoringProcess")
    books = finished(scored, run, 60)
    assert "the reward service died" in (run.directory / "events.jsonl").read_text()
    assert run.summary["restarts"] == 1
    assert books["dropped"] == 0  # trajectories outlive whoever asked about them


def test_what_a_scorer_refuses_is_dropped_with_its_reason_and_given_up_in_the_end(scored: Any) -> None:
    run = scored.train("total_learner_steps=8", "reward=scoring:picky", "runtime=serial")
    books = finished(scored, run, 8)
    assert books["dropped_by_reason"]["unscored"] == 2 * books["dropped_by_reason"]["attempts_exhausted"] > 0


def test_the_service_of_a_killed_driver_ends_with_it(scored: Any) -> None:
    run = scored.train(*LONG, "runtime=serial", "actors.num=1")
    run.wait_for_step(2)
    service = run.find("rollcall.reward_service.private")
    run.process.kill()
    psutil.wait_procs([service], timeout=30)
    assert not service.is_running() or service.status() == psutil.STATUS_ZOMBIE
