"""Runs that go on: longer than they were to be, with a user's own reward, and in another run that begins with their
weights. Through the command line, on Ray and with the real vLLM."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.cluster.checkpoint import latest_checkpoint, list_checkpoints, load_weights
from tests import EARLIER
from tests.needs import require
from tests.runs import Bench, Run


def done(run: Run) -> dict[str, Any]:
    run.wait(timeout_s=280)
    assert run.process.returncode == 0, run.output[-1000:] + run.errors[-2000:]
    summary: dict[str, Any] = run.summary
    return summary


def same_weights(one: Path, other: Path) -> bool:
    first, second = (dict(load_weights(path).tensors()) for path in (one, other))
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.long
def test_on_ray_a_completed_run_is_made_longer_and_another_begins_with_its_weights(bench: Bench) -> None:
    assert done(bench.train("actors.num=2", "total_learner_steps=4"))["learner_steps"] == 4
    longer = bench.start("resume", "run", "total_learner_steps=6", "learner.learning_rate=1e-4", "actors.num=1")
    assert done(longer)["learner_steps"] == 6
    (_, segment) = json.loads((longer.directory / "segments.json").read_text())
    assert segment["step"] == 4
    assert segment["changes"].keys() == {"total_learner_steps", "learner.learning_rate", "actors.num"}
    code, text = bench.audit()
    assert code == 0 and "segment from step 4" in text, text
    second = bench.train("total_learner_steps=2", "policy.init_from=run", name="second")
    assert done(second)["learner_steps"] == 2
    assert bench.audit("second")[0] == 0
    # The newest three checkpoints are kept: of steps 0, 1 and 2.
    assert same_weights(list_checkpoints(second.directory)[0], latest_checkpoint(longer.directory)[0])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_language_run_with_a_reward_function_is_interrupted_resumed_evaluated_and_exported(bench: Bench) -> None:
    """It begins with the weights of an earlier release's run."""
    require("vllm")
    shutil.copytree(EARLIER / "language", bench.folder / "runs" / "earlier")
    (bench.folder / "my_module.py").write_text("def score(item):\n    return float(len(item.response))\n")
    settings = ("runtime=serial", "reward=my_module:score", "policy.init_from=earlier", "total_learner_steps=500")
    sizes = ("actors.prompts_per_batch=2", "actors.samples_per_prompt=2", "actors.sampling.max_tokens=4")
    task = ("task.digits=1", "task.num_eval_rows=4", "eval.episodes=0", "eval.at_start=false", "metrics.enabled=false")
    run = bench.start("train", "arithmetic-grpo", *settings, *sizes, *task, "name=run")
    run.wait_for_step(1, timeout_s=280)
    os.kill(run.process.pid, signal.SIGINT)
    run.wait()
    assert run.process.returncode == 130, run.errors[-2000:]
    steps = run.summary["learner_steps"]
    resumed = bench.start("resume", "run", f"total_learner_steps={steps + 2}")
    assert done(resumed)["learner_steps"] == steps + 2
    assert all(record["reward_mean"] >= 0 for record in resumed.steps())
    assert bench.audit()[0] == 0
    evaluated = bench.start("eval", "run", "--episodes", "2", "--json")
    done(evaluated)
    assert json.loads(evaluated.output.splitlines()[-1])["n"] == 2
    done(bench.start("export", "run", "exported"))
    assert (bench.folder / "exported" / "model.safetensors").is_file()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_language_run_of_an_earlier_release_goes_on_to_its_end_and_is_evaluated(bench: Bench) -> None:
    require("vllm")
    shutil.copytree(EARLIER / "language", bench.folder / "runs" / "run")
    resumed = bench.start("resume", "run")
    assert done(resumed)["status"] == "completed"
    assert resumed.summary["final_eval"]["n"] == 4
    assert bench.audit()[0] == 0
