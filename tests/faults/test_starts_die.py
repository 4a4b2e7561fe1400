"""Every kind of member is killed while it starts, also while it takes another's place: it is started again, and the
run ends well."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence

import psutil
import pytest

from tests.faults.test_preference_trainer_dies import SETTINGS
from tests.faults.test_processes_die import assert_books_balance
from tests.runs import Bench, Run

MEMBERS = {
    "GymActorProcess": "actor",
    "LearnerProcess": "learner",
    "ParameterServerProcess": "parameter_server",
    "ScoringProcess": "scoring",
    "PreferenceTrainerProcess": "preference_trainer",
    "EvalProcess": "evaluator",
}


def kill_at_sight(run: Run, titles: Sequence[str], timeout_s: float = 240) -> None:
    """Each of them once, as soon as there is one: it has only begun to import."""
    left, deadline = list(titles), time.monotonic() + timeout_s
    while left and run.process.poll() is None:
        assert time.monotonic() < deadline, f"never seen: {left}"
        for child in psutil.Process(run.process.pid).children(recursive=True):
            try:
                line = " ".join(child.cmdline())
                for title in [title for title in left if title in line]:
                    child.kill()
                    left.remove(title)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
    assert not left, f"never seen: {left}"


def failed_starts(run: Run) -> Counter[str]:
    events = map(json.loads, (run.directory / "events.jsonl").read_text().splitlines())
    return Counter(event["text"].partition(":")[0] for event in events if event["kind"] == "start_failed")


@pytest.mark.long
def test_each_kind_of_member_may_be_killed_while_it_starts(bench: Bench) -> None:
    run = bench.train(*SETTINGS, "eval.episodes=1")
    kill_at_sight(run, list(MEMBERS))
    run.wait()
    assert run.process.returncode == 0, run.errors
    assert set(failed_starts(run)) == set(MEMBERS.values())
    assert run.summary["restarts"] >= len(MEMBERS) and run.summary["final_eval"] is not None
    books = assert_books_balance(bench, run)
    assert "attempts_exhausted" not in books["dropped_by_reason"]


@pytest.mark.long
def test_members_may_be_killed_while_they_take_anothers_place(bench: Bench) -> None:
    run = bench.train("total_learner_steps=40", "actors.num=1", "checkpoint.every_steps=5")
    run.wait_for_step(8)
    for title in ("GymActorProcess", "LearnerProcess"):
        at_work = run.find(title)
        at_work.kill()
        _kill_another(run, title, {at_work.pid})
    run.wait()
    assert run.process.returncode == 0, run.errors
    assert {"actor", "learner"} <= set(failed_starts(run))
    assert assert_books_balance(bench, run)["committed"] == 40 * 4


def _kill_another(run: Run, title: str, known: set[int], timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for child in psutil.Process(run.process.pid).children(recursive=True):
            try:
                if child.pid not in known and title in " ".join(child.cmdline()):
                    child.kill()
                    return
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
    raise AssertionError(f"no other {title}")
