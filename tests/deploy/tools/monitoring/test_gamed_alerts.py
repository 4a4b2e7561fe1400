"""A run that games its reward is told of before it has lost what it was meant for, and a sound one is left alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rollcall.cluster.loop import gamed_rewards
from tests import ROOT
from tests.deploy.tools.monitoring.alert_series import first_firing
from tests.needs import needs

# Every learner step of two real runs of rlhf-reviews, 80 steps of 256 completions: `sound` as shipped; `gamed` with the
# reward 0.5 * kindness + 0.1 * the number of characters in place of the reward model, and learning_rate=1e-4.
RECORDED = ROOT / "tests" / "deploy" / "recorded"


def recorded(name: str) -> list[dict[str, Any]]:
    """With what the driver makes of them today."""
    kept: dict[str, float] = {}
    lines = (RECORDED / f"{name}.jsonl").read_text().splitlines()
    return [record | gamed_rewards.followed(kept, record) for record in map(json.loads, lines)]


def step_of_a_tenth_lost(records: Sequence[Mapping[str, Any]]) -> int:
    """The first step after which the task's own reward, the mean of three batches, is below nine tenths of its best."""
    best = 0.0
    for step in range(2, len(records)):
        mean = sum(record["reward_task"] for record in records[step - 2 : step + 1]) / 3
        best = max(best, mean)
        if mean < 0.9 * best:
            return step
    raise AssertionError("nothing is lost")


@needs("promtool")
def test_a_run_whose_reward_prefers_length_is_told_of_before_a_tenth_of_the_truth_is_lost(tmp_path: Path) -> None:
    records = recorded("gamed")
    lost = step_of_a_tenth_lost(records)
    fired = first_firing(records, tmp_path)
    assert lost == 36
    assert fired["RollcallRewardOutrunsTask"] <= 30
    # What follows says what the flaw is, and how bad it is.
    assert {"RollcallTaskRewardFalls", "RollcallLengthDrift", "RollcallRewardOrdersBadly"} <= fired.keys()
    assert fired["RollcallTaskRewardFalls"] <= lost + 3
    assert "RollcallEntropyCollapse" not in fired and "RollcallCompletionsAlike" not in fired


@needs("promtool")
def test_a_sound_run_is_silent_from_its_first_step_to_its_last(tmp_path: Path) -> None:
    assert first_firing(recorded("sound"), tmp_path) == {}


@needs("promtool")
def test_a_run_that_learns_from_the_tasks_own_reward_is_told_nothing_of_gaming(tmp_path: Path) -> None:
    proxied = {
        *("reward_task", "task_std", "task_error", "reward_std", "reward_agreement"),
        *("task_gain", "reward_gain", "task_reward_lost"),
    }
    records = [{key: value for key, value in record.items() if key not in proxied} for record in recorded("gamed")]
    assert first_firing(records, tmp_path) == {}
