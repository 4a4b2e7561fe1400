"""The process that trains reward models from preferences is killed while the policy learns: another one goes on from
the labels on the disk, and the policy waits for it where it must."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rollcall.cluster.books.consumption import LOG_NAME, read_log
from rollcall.reward_service.preferences.files import read_preferences
from tests.runs import Bench

SETTINGS = (
    "env.fixed_episode_steps=50",
    "total_learner_steps=12",
    "max_policy_lag=0",  # the tickets of one step are scored by one version
    "actors.num=2",
    "preferences.rater=synthetic",
    "preferences.true_reward=rollcall.reward_service.raters.true_rewards:upright_and_centred",
    "preferences.total_labels=24",
    "preferences.initial_labels=8",
    "preferences.rounds=4",
    "preferences.segment_steps=8",
    "preferences.epochs=4",
)


@pytest.mark.long
def test_a_killed_preference_trainer_is_started_again_and_loses_no_label(bench: Bench) -> None:
    run = bench.train(*SETTINGS)
    models = run.directory / "reward_models"
    deadline = time.monotonic() + 200
    while not (models / "labels-00008.jsonl").exists():  # the first reward model is being trained
        assert run.process.poll() is None, run.process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.kill("PreferenceTrainerProcess")
    run.wait_for_step(6)
    run.kill("PreferenceTrainerProcess")
    run.wait()
    assert run.process.returncode == 0, run.errors
    assert bench.audit()[0] == 0
    assert run.summary["restarts"] in (1, 2)  # the second one is missed where no label was due after it
    labels = sorted(path.name for path in models.glob("labels-*.jsonl"))
    assert labels[0] == "labels-00008.jsonl" and labels[-1] == "labels-00024.jsonl"
    seen: list[str] = []
    for name in labels:  # what was once learnt from is there ever after
        now = [str(preference.details["comparison"]) for preference in read_preferences(models / name)]
        assert now[: len(seen)] == seen and len(set(now)) == len(now)
        seen = now
    versions = [consumed.reward_version for _, consumed in read_log(Path(run.directory) / "logs" / LOG_NAME).lines]
    assert all(versions) and len(set(versions)) == len(labels)
    assert versions == sorted(versions, key=versions.index)  # one after the other, never back
