"""Runs on data sets whose process is killed in the middle: they go on from their checkpoint to the bits of a run that
nobody interrupts, whatever is learnt, with adapters and without."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rollcall.cluster.checkpoint import list_checkpoints, load_weights
from rollcall.deploy.kinds.recipes import load_run
from tests.deploy.kinds.preferences.test_preference_runs import DIRECT, REWARD
from tests.end_to_end.test_shared_steps import LEAVES, SUMS
from tests.needs import require, require_module
from tests.runs import Bench, Run

require_module("transformers")
require("peft")

DIRECT_40 = (*DIRECT, "total_learner_steps=40", "kl_prompts=0")
CASES: dict[str, tuple[str, ...]] = {
    "dpo-lora": ("train", "synthetic-dpo", *DIRECT_40, "policy.lora={rank: 4}"),
    "ipo": ("train", "synthetic-ipo", *DIRECT_40),
    "kto": ("train", "synthetic-kto", *DIRECT_40),
    "group_dpo": ("train", "synthetic-group-dpo", *DIRECT_40),
    "reward-lora": (
        *("reward", "train", "synthetic-reward", *REWARD, "total_learner_steps=40", "model.lora={rank: 4}"),
        *("keep=best", "eval_every=3", "patience=null", "model.members=3"),
    ),
    "sft-lora": ("sft", "sums.yaml", "policy.warm_start={steps: 120, batch_size: 16, threads: 1, lora: {rank: 4}}"),
}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "sums.yaml").write_text(SUMS)
    with closing(Bench(tmp_path)) as bench:
        yield bench


def left(run: Run) -> tuple[str, bytes]:
    """(hash of the last step's weights, the model that the run leaves)"""
    folder = run.directory / LEAVES[load_run(run.directory).kind.name]
    return load_weights(list_checkpoints(run.directory)[-1]).checksum, (folder / "model.safetensors").read_bytes()


def finished(run: Run) -> Run:
    run.wait()
    assert run.process.returncode == 0, run.errors[-2000:]
    assert run.summary["status"] == "completed"
    return run


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_weights_and_the_model_of_an_uninterrupted_one(bench: Bench, case: str) -> None:
    arguments = (*CASES[case], "checkpoint.every_steps=5")
    whole = finished(bench.start(*arguments, "name=whole", name="whole"))
    run = bench.start(*arguments, "name=run")
    run.wait_for_step(12)
    run.process.send_signal(signal.SIGKILL)
    run.wait()
    assert not (run.directory / "summary.json").exists(), "it was over before it was killed"
    again = finished(bench.start("resume", "run"))
    assert left(again) == left(whole)
    assert [(step["step"], step["loss"]) for step in again.steps()] == [
        (step["step"], step["loss"]) for step in whole.steps()
    ]
