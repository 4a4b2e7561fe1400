"""Language runs on the command line: supervised fine-tuning alone, and what becomes of a trained policy. A test that
starts a real vLLM engine is marked slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.deploy.cli import main
from rollcall.deploy.drive import lifecycle
from rollcall.deploy.drive.lifecycle import prepare
from rollcall.deploy.drive.records import RunRecorder
from rollcall.deploy.kinds.beginning import new_run
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.recipes import load_recipe
from rollcall.deploy.report.run_lines import read_jsonl
from tests.runs import config_of

RECIPE = """\
# One-digit addition for a moment
total_learner_steps: 2
runtime: serial
task: {name: arithmetic, digits: 1, num_eval_rows: 20}
policy:
  model: tiny
  tiny: {hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}
  warm_start: {steps: 60, batch_size: 32, learning_rate: 1e-2}
algorithm: grpo
actors:
  samples_per_prompt: 4
  prompts_per_batch: 4
  sampling: {max_tokens: 4}
  engine: {max_model_len: 16, max_num_seqs: 32, enforce_eager: true}
eval: {num_rows: 0}
metrics: {enabled: false}
"""
WEIGHTS = "model.safetensors"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sums.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rollcall.deploy.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float) -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return process.returncode, output, errors


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def test_sft_makes_the_very_model_that_a_run_would_begin_with(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["sft", "sums.yaml"]) == 0
    directory = Path("runs/sums")
    printed = capsys.readouterr().out
    assert printed.startswith("run directory: runs/sums\n") and "model: runs/sums/warm_start\n" in printed
    run = Path("run")
    run.mkdir()
    prepare(LanguageFactory(config_of("sums.yaml"), run))
    assert (directory / "warm_start" / WEIGHTS).read_bytes() == (run / "warm_start" / WEIGHTS).read_bytes()
    summary = read(directory / "summary.json")
    assert {key: summary[key] for key in ("status", "recipe", "algorithm", "seed", "learner_steps")} == {
        **{"status": "completed", "recipe": "sums", "algorithm": "sft", "seed": 0, "learner_steps": 60}
    }
    assert summary["first_eval"] is None and summary["final_eval"] is None  # eval.num_rows is 0
    assert summary["model_directory"] == "runs/sums/warm_start"
    losses = [line["negative_log_likelihood"] for line in read_jsonl(directory / "metrics.jsonl")]
    assert losses == [line["negative_log_likelihood"] for line in read_jsonl(run / "warm_start.jsonl")]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert read(directory / "run.json")["versions"].keys() >= {"transformers", "torch"}


def test_a_run_of_sft_of_an_earlier_release_is_neither_resumed_nor_evaluated_and_the_message_names_its_model(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["sft", "sums.yaml", "policy.warm_start.steps=1"]) == 0
    path = Path("runs/sums/config.yaml")  # those had the recipe's algorithm there
    path.write_text(path.read_text().replace("algorithm:\n  name: sft\n", "algorithm:\n  name: grpo\n"))
    for command in ("resume", "eval", "export"):
        capsys.readouterr()
        assert main.main([command, "sums"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "a run of rollcall sft" in line and line.endswith("its model is runs/sums/warm_start")


def test_a_run_of_sft_is_a_run_like_any_other(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["sft", "sums.yaml", "policy.warm_start.steps=20"]) == 0
    assert "report: runs/sums/report.html" in capsys.readouterr().out
    assert main.main(["resume", "sums"]) == 0
    assert "nothing to go on with" in capsys.readouterr().out
    assert main.main(["export", "sums"]) == 0
    exported, model = Path("runs/sums/policy"), Path("runs/sums/warm_start")
    assert (exported / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    assert main.main(["audit", "sums"]) == 2
    assert "a run on demonstrations" in capsys.readouterr().err
    assert main.main(["train", "runs/sums/config.yaml", "name=again"]) == 0  # it is a recipe, too
    assert Path("runs/again/warm_start", WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["sft"], ["required: RECIPE"]),
        (["sft", "cartpole-ppo"], ["cartpole-ppo: a control recipe", "needs one with a task"]),
        (["sft", "sums.yaml", "policy.warm_start=null"], ["policy.warm_start = null", "policy.warm_start.steps=400"]),
        (
            ["sft", "sums.yaml", "policy.model=/nowhere/model"],
            ["policy.model = '/nowhere/model' (command line): there is no such directory"],
        ),
        (["stf", "sums.yaml"], ["unknown command 'stf'", "did you mean sft?"]),
        (["exprot", "sums"], ["did you mean export?"]),
    ],
)
def test_a_wrong_command_line_gets_one_clear_line_and_leaves_no_run(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    assert main.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines
    assert not list(work.glob("runs/*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sft_leaves_no_model_and_goes_on_from_its_checkpoint(work: Path, number: signal.Signals) -> None:
    process = start(work, "sft", "sums.yaml", "policy.warm_start.steps=1000000")
    directory = work / "runs" / "sums"
    deadline = time.monotonic() + 90
    while not (directory / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.1)
    time.sleep(1.0)  # a few steps
    process.send_signal(number)
    code, output, errors = finish(process, 60)
    assert code == 130, errors
    assert "model: none was written" in output and "Traceback" not in errors
    assert output.endswith("go on with: rollcall resume runs/sums\n")
    summary = read(directory / "summary.json")
    assert summary["status"] == "stopped" and summary["model_directory"] is None and summary["learner_steps"] > 0
    assert not (directory / "warm_start").exists()


def test_a_signal_ends_a_run_that_is_still_in_its_warm_start(work: Path) -> None:
    process = start(work, "train", "sums.yaml", "policy.warm_start.steps=1000000")
    directory = work / "runs" / "sums"
    deadline = time.monotonic() + 90
    while not (directory / "warm_start.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, _, errors = finish(process, 60)
    assert code == 1 and "stopped before anything was learnt" in errors.splitlines()[-1], errors
    assert not (directory / "warm_start").exists()


def test_a_language_run_that_failed_is_summed_up_in_tokens(work: Path) -> None:
    run = new_run(load_recipe("sums.yaml"), named="sums", explicit=True)
    steps = [{"step": 0, "tokens": 40, "elapsed_s": 2.0}, {"step": 1, "tokens": 90, "elapsed_s": 3.0}]
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    recorder = RunRecorder(run, [], None)
    drive = lifecycle._drive_of(run, recorder, lambda: False)
    lifecycle._sum_up_failed(RuntimeError("no more"), run, drive, {"status": "failed", "wall_s": 5.0})
    summary = read(run.directory / "summary.json")
    assert summary["generated_tokens"] == 90 and summary["tokens_per_s"] == 30.0 and summary["learner_steps"] == 2
    assert "env_steps" not in summary and "steps_per_s" not in summary


def trained(work: Path) -> None:
    """Two learner steps after a warm start, by the name of sums."""
    code, output, errors = finish(
        start(work, "train", "sums.yaml", "policy.warm_start.steps=200", "runtime=serial"), 280
    )
    assert code == 0, errors
    assert "policy: runs/sums/policy\n" in output


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_an_exported_policy_is_judged_and_fine_tuned_further(work: Path) -> None:
    """Three engines: of the run's actor, of `rollcall eval`, and of `rollcall sft`, whose engine loads the export."""
    trained(work)
    code, output, errors = finish(start(work, "eval", "sums", "--episodes", "20", "--json"), 280)
    assert code == 0, errors
    result = json.loads(output)  # nothing else is printed
    assert (result["unit"], result["n"], result["mode"], result["policy_version"]) == ("exact match", 20, "greedy", 2)
    assert result["mean"] == np.mean(result["rewards"]) and 0 <= result["unparsed"] <= 20
    assert len(result["lengths"]) == 20 and max(result["lengths"]) <= 4

    further = ("policy.model=runs/sums/policy", "policy.warm_start.steps=300", "eval.episodes=20", "name=more")
    code, output, errors = finish(start(work, "sft", "sums.yaml", *further), 280)
    assert code == 0, errors
    summary = read(work / "runs" / "more" / "summary.json")
    before, after = summary["first_eval"], summary["final_eval"]
    assert before["mean"] == result["mean"] > 0  # the same weights, by way of the exported directory
    assert after["mean"] > before["mean"] and after["n"] == 20
    assert f"after: {100 * after['mean']:.1f} % of 20 problems\n" in output
