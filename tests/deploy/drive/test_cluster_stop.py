"""A run that is stopped anywhere within a batch leaves an exact checkpoint of the boundary before it: going on from
there ends with the weights of a run that nobody stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.checkpoint import latest_checkpoint, list_checkpoints
from rollcall.deploy.drive.lifecycle import drive_alone
from rollcall.deploy.report.recorders import JsonLines
from tests.runs import config_of

SETTINGS = {
    **{"runtime": "serial", "max_policy_lag": 0, "total_learner_steps": 5, "metrics.enabled": False},
    **{"actors.num_envs": 4, "actors.num_shards": 2, "actors.unroll_length": 16, "eval.episodes": 0},
    **{"algorithm.num_minibatches": 2, "algorithm.epochs": 1, "checkpoint.every_steps": 100, "learner.compile": "off"},
}
POLLS_OF_FIRST_CHECKPOINT = 2  # the learner's part, the actors' state
POLLS_PER_STEP = 3  # two shards act, the learner learns


class Countdown:
    """In place of a stop event: nobody has asked for a stop, so and so many times."""

    def __init__(self, looks: float) -> None:
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def run(folder: Path, looks: float = float("inf"), *, resume: bool = False) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("max_policy_lag: 0\n")
    config = config_of("cartpole-ppo", values=SETTINGS)
    lines, stop = JsonLines(folder), Countdown(looks)
    try:
        return drive_alone(config, folder, lines, resume=resume, stop_requested=stop.is_set)
    finally:
        lines.close({})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("polls", range(POLLS_PER_STEP))
def test_a_stop_within_a_batch_goes_back_to_the_exact_boundary_before_it(
    tmp_path: Path, whole: dict[str, Any], polls: int
) -> None:
    stopped = run(tmp_path / "run", POLLS_OF_FIRST_CHECKPOINT + 2 * POLLS_PER_STEP + polls)
    assert stopped["status"] == "stopped" and stopped["learner_steps"] == 2
    checkpoint, manifest, _ = latest_checkpoint(tmp_path / "run")
    assert manifest.tier == "exact" and manifest.step == 2, checkpoint
    resumed = run(tmp_path / "run", resume=True)
    assert resumed["status"] == "completed"
    assert resumed["weights_hash"] == whole["weights_hash"] != stopped["weights_hash"]
    assert audit_run(tmp_path / "run") == []


def test_a_stop_before_the_first_checkpoint_leaves_none_and_a_stopped_run(tmp_path: Path) -> None:
    stopped = run(tmp_path / "run", 1)
    assert stopped["status"] == "stopped" and stopped["learner_steps"] == 0
    assert list_checkpoints(tmp_path / "run") == []
    assert "there is no checkpoint" in (tmp_path / "run" / "events.jsonl").read_text()
    assert audit_run(tmp_path / "run") == []
