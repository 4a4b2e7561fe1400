"""A policy that never sees a reward: people's labels, given at the run's own page, become reward models that are
swapped in while it trains."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from rollcall.cluster.books.consumption import LOG_NAME, read_log
from rollcall.reward_service.labelling.client import LabelClient
from rollcall.reward_service.preferences.files import read_preferences
from rollcall.reward_service.raters.rater import label_all
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater
from rollcall.reward_service.raters.synthetic_rater_config import SyntheticRaterConfig
from rollcall.reward_service.raters.true_rewards import upright_and_centred
from tests.runs import Bench, Run
from tests.waiting import eventually

SETTINGS = (
    "env.fixed_episode_steps=50",
    "total_learner_steps=10",
    "preferences.total_labels=16",
    "preferences.initial_labels=8",
    "preferences.rounds=3",
    "preferences.segment_steps=8",
    "preferences.epochs=4",
)
JUDGED = (
    "preferences.rater=synthetic",
    "preferences.true_reward=rollcall.reward_service.raters.true_rewards:upright_and_centred",
)


def page_of(run: Run) -> str:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        events = run.directory / "events.jsonl"
        found = re.search(r"label at (http://\S+?)/label", events.read_text() if events.exists() else "")
        if found:
            return found.group(1)
        assert run.process.poll() is None, run.process.communicate()
        time.sleep(0.2)
    raise AssertionError("the run names no page")


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["serial", pytest.param("ray", marks=pytest.mark.prove)])
def test_labels_of_people_become_rewards_while_the_policy_trains(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    monkeypatch.setenv("ROLLCALL_REWARD_TOKEN", "a token of ours")
    run = bench.train(*SETTINGS, "preferences.question=Which one is steadier?", f"runtime={runtime}")
    person = SyntheticRater("person", upright_and_centred, SyntheticRaterConfig())
    with LabelClient(page_of(run), "a token of ours") as queue:
        deadline = time.monotonic() + 200
        while run.process.poll() is None and queue.progress("person").labels < 16:
            label_all(person, queue)
            assert time.monotonic() < deadline
            time.sleep(0.1)
    run.wait()
    assert run.process.returncode == 0, run.errors
    assert bench.audit()[0] == 0
    lines = read_log(Path(run.directory) / "logs" / LOG_NAME).lines
    versions = [consumed.reward_version for _, consumed in lines]
    assert all(versions) and len(set(versions)) == 3
    assert versions == sorted(versions, key=versions.index)  # one after the other, never back
    models = sorted(path.name for path in (run.directory / "reward_models").glob("labels-*.jsonl"))
    assert models == ["labels-00008.jsonl", "labels-00014.jsonl", "labels-00016.jsonl"]
    assert len(read_preferences(run.directory / "reward_models" / models[-1])) == 16
    assert "a token of ours" not in "".join(
        path.read_text(errors="replace") for path in run.directory.rglob("*") if path.is_file()
    )
    record = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["reward_versions"] == [versions[-1]]


@pytest.mark.long
def test_on_ray_a_trainer_in_a_process_of_its_own_learns_what_a_program_prefers(bench: Bench) -> None:
    quick = ("total_learner_steps=3", "preferences.rounds=2", "max_policy_lag=0", "actors.num=1")
    run = bench.train(*SETTINGS, *JUDGED, *quick)
    own_log = run.directory / "logs" / "preference-trainer.log"
    eventually(lambda: own_log.exists() or run.process.poll() is not None, 200)
    trainer, scoring = run.find("PreferenceTrainerProcess"), run.find("ScoringProcess")
    assert trainer.pid not in (scoring.pid, run.process.pid)
    run.wait()
    assert run.process.returncode == 0, run.errors
    assert bench.audit()[0] == 0
    assert (run.summary["learner_steps"], run.summary["restarts"]) == (3, 0)
    labels = sorted((run.directory / "reward_models").glob("labels-*.jsonl"))
    assert [len(read_preferences(path)) for path in labels] == [8, 16]
    versions = [consumed.reward_version for _, consumed in read_log(run.directory / "logs" / LOG_NAME).lines]
    assert all(versions) and len(set(versions)) == 2


@pytest.mark.prove
def test_a_run_whose_episodes_are_too_short_to_compare_says_so_and_stops(bench: Bench) -> None:
    settings = [item for item in SETTINGS if "fixed_episode" not in item and "segment_steps" not in item]
    run = bench.train(*settings, *JUDGED, "preferences.segment_steps=32", "env.max_episode_steps=9", "runtime=serial")
    run.wait()
    assert run.process.returncode == 1
    assert "no two stretches of 32 steps" in run.errors and "env.fixed_episode_steps" in run.errors
    assert run.summary["status"] == "failed"
