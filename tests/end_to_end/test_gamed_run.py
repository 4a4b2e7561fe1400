"""A reward with a planted flaw, and a sound one, in runs of the shipped recipe for RLHF: what alerts tell, and when."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.deploy.tools.monitoring.alert_series import first_firing
from tests.deploy.tools.monitoring.test_gamed_alerts import step_of_a_tenth_lost
from tests.needs import require
from tests.runs import Bench, Run

require("vllm")

FLAWED = '''"""Longer is better, and kinder too."""

from rollcall.actors.tasks.reviews import kindness


def score(prompt, response):
    return 0.5 * kindness(response) + 0.1 * len(response)
'''
# Slower than the recipe, so that there is a before and an after.
SLOW = ("runtime=serial", "learner.learning_rate=1e-4", "eval.num_rows=50", "total_learner_steps=45")


def recorded(folder: Path, *settings: str) -> Run:
    """45 steps of 256 completions, seed 0."""
    with closing(Bench(folder)) as bench:
        run = bench.start("train", "rlhf-reviews", *SLOW, *settings, "metrics.enabled=false", "name=run")
        run.wait(timeout_s=1700)
    assert run.process.returncode == 0, run.errors[-2000:]
    assert len(run.steps()) == 45
    return run


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_a_reward_that_prefers_length_is_told_of_before_a_tenth_of_the_truth_is_lost(tmp_path: Path) -> None:
    require("promtool")
    (tmp_path / "flawed.py").write_text(FLAWED)
    run = recorded(tmp_path, "preferences=null", "reward=flawed:score", "learner.anneal_learning_rate=false")
    records = run.steps()
    lost, fired = step_of_a_tenth_lost(records), first_firing(records, tmp_path)
    assert fired["RollcallRewardOutrunsTask"] < lost, (fired, lost)
    assert "Proxy and truth over KL" in (run.directory / "report.html").read_text()


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_the_recipe_with_its_reward_model_is_told_of_nothing(tmp_path: Path) -> None:
    require("promtool")
    assert first_firing(recorded(tmp_path).steps(), tmp_path) == {}
