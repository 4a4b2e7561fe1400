"""The command line: every wrong input gets one clear line, exit code 2 and nothing half-done; every ending its code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.cluster.checkpoint import list_checkpoints
from rollcall.deploy.cli import main
from rollcall.deploy.drive.online import OnlineDrive
from rollcall.deploy.report.run_lines import read_jsonl
from tests.runs import Bench

RECIPE = """\
# CartPole for a moment
total_learner_steps: 4
runtime: serial
env: CartPole-v1
algorithm:
  name: ppo
  epochs: 1
actors:
  num_envs: 4
  unroll_length: 16
eval:
  episodes: 2
checkpoint:
  every_steps: 2
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with one completed run, runs/small."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "small.yaml").write_text(RECIPE)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main.main(["train", "small.yaml"]) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may break."""
    folder = tmp_path / "work"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("*.sock", "lock"))
    monkeypatch.chdir(folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must be refused; returns its one line, and checks that no run was left behind."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main.main(list(arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("rollcall: error: ")
    assert "Traceback" not in lines[0]
    assert sorted(path.name for path in Path("runs").iterdir()) == ["small"]
    after = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    assert {path for path in after if before.get(path) != after[path]} <= set(Path("runs/small").rglob("*"))
    return lines[0].removeprefix("rollcall: error: ")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trian", "small.yaml"], ["unknown command 'trian'", "did you mean train?"]),
        (["cartpole-ppo"], ["did you mean rollcall train cartpole-ppo?"]),
        (["train"], ["required: RECIPE", "rollcall train --help"]),
        (["train", "cartpole-pp"], ["unknown recipe 'cartpole-pp'", "did you mean cartpole-ppo?"]),
        (["train", "elsewhere.yaml"], ["elsewhere.yaml: No such file"]),
        (["train", "small.yaml", "actors.nun=2"], ["unknown key", "did you mean actors.num?"]),
        (
            ["train", "small.yaml", "actor.num=2"],
            ["actor = {'num': 2} (command line): unknown key; did you mean actors?"],
        ),
        (["list"], ["unknown command 'list'", "there are train, resume, sft"]),
        (["train", "small.yaml", "actors.num"], ["an override is key=value"]),
        (["train", "small.yaml", "actors.num=x"], ["actors.num = 'x' (command line): must be a whole number"]),
        (["train", "small.yaml", "algorithm=pp"], ["unknown algorithm", "did you mean ppo?"]),
        (["train", "small.yaml", "env=CartPole-v9"], ["env.id = 'CartPole-v9'", "did you mean CartPole-v1?"]),
        (["train", "small.yaml", "algorithm=a2c", "max_policy_lag=1"], ["set max_policy_lag=0"]),
        (["train", "small.yaml", "name=small"], ["runs/small exists", "rollcall resume runs/small"]),
        (["train", "small.yaml", "--fast"], ["unrecognized arguments: --fast"]),
        (["resume", "smal"], ["no run 'smal'", "did you mean small?"]),
        (["resume", "."], ["no run here", "config.yaml is missing"]),
        (["eval", "runs/small/checkpoints/step-00000003"], ["no checkpoint 'runs/small/checkpoints/step-00000003'"]),
        (["eval", "small", "--episodes", "0"], ["--episodes = 0", "1 or more"]),
        (["eval", "small", "--episodes", "many"], ["--episodes", "invalid int value: 'many'"]),
        (["eval", "small", "--video", "film.mp4"], ["film.mp4", "film.gif"]),
        (["report", "nothing"], ["no run 'nothing'", "runs/ holds small"]),
        (["audit", "nothing"], ["no run 'nothing'"]),
        (["config"], ["config needs a RECIPE, --explain KEY or --schema"]),
        (["bench", "gym", "--peer", "sb4"], ["invalid choice: 'sb4'"]),
        (["bench", "gym", "--repeats", "0"], ["--repeats = 0"]),
        (["bench", "swim"], ["invalid choice: 'swim'"]),
    ],
)
def test_a_wrong_command_line_gets_one_clear_line(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    line = refused(capsys, *arguments)
    assert all(part in line for part in parts), line


def test_a_port_in_use_is_refused_where_it_was_asked_for(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(capsys, "train", "small.yaml", f"metrics.port={port}")
    assert f"metrics.port={port}" in line
    assert "in use" in line


def test_a_redis_that_does_not_answer_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and never says a word
        address = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        line = refused(
            capsys,
            "train",
            "small.yaml",
            f"redis.url={address}",
            "redis.start_timeout_s=0.5",
            "redis.operation_timeout_s=0.5",
        )
    assert address in line
    assert "does not answer" in line


def test_a_missing_optional_package_is_named_with_the_extra_that_brings_it(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert "pip install 'rollcall-rl[atari]'" in refused(capsys, "train", "small.yaml", "env=ALE/Pong-v5")


@pytest.mark.parametrize("command", [["eval"], ["resume"]])
def test_a_run_whose_every_checkpoint_is_damaged_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    (work / "runs/small/summary.json").unlink()
    for checkpoint in list_checkpoints(work / "runs/small"):
        weights = checkpoint / "weights.safetensors"
        damaged = bytearray(weights.read_bytes())
        damaged[-1] ^= 1
        weights.write_bytes(damaged)
    line = refused(capsys, *command, "small")
    assert "no checkpoint to load" in line
    assert "weights.safetensors: damaged" in line


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = list_checkpoints(work / "runs/small")[-1]
    (newest / "weights.safetensors").write_bytes(b"nothing")
    assert "damaged" in refused(capsys, "eval", str(newest))
    assert main.main(["eval", "small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["policy_version"] == 2


def test_a_checkpoint_of_another_config_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = work / "runs/small/config.yaml"
    config.write_text(config.read_text().replace("epochs: 1", "epochs: 2"))
    assert "made under another config" in refused(capsys, "eval", "small")


def test_a_checkpoint_outside_its_run_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(list_checkpoints(work / "runs/small")[-1], work / "alone" / "kept" / "step-00000004")
    assert "a checkpoint outside its run" in refused(capsys, "eval", "alone/kept/step-00000004")


# What is right.


def test_a_run_leaves_the_files_and_the_summary_that_scripts_rely_on(trained: Path) -> None:
    run = trained / "runs/small"
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "tensorboard", "report.html", "logs"):
        assert (run / name).exists(), name
    summary = json.loads((run / "summary.json").read_text())
    expected = "status recipe algorithm seed wall_s train_s learner_steps env_steps steps_per_s final_eval policy_lag"
    assert {*expected.split(), "ledger", "restarts", "config_hash"} <= summary.keys()
    assert (summary["status"], summary["recipe"], summary["learner_steps"]) == ("completed", "small", 4)
    assert [record["step"] for record in read_jsonl(run / "metrics.jsonl")] == [0, 1, 2, 3]


def test_training_prints_the_run_directory_first_and_a_taken_name_gets_a_number(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["train", "small.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run directory: runs/small-2"
    assert any(line.startswith("completed in") for line in lines)
    assert lines[-2] == "report: runs/small-2/report.html"
    assert lines[-1] == "next: rollcall eval small-2 · rollcall report small-2 · rollcall export small-2"


def test_a_completed_run_has_nothing_to_go_on_with(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["resume", "runs/small"]) == 0
    assert "completed" in capsys.readouterr().out


def test_the_same_evaluation_gives_the_same_result(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for target in ("small", "runs/small", str(list_checkpoints(work / "runs/small")[-1])):
        assert main.main(["eval", target, "--episodes", "3", "--seed", "7", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["returns"] == results[1]["returns"] == results[2]["returns"]
    assert results[0]["n"] == 3
    assert results[0]["mode"] == "greedy"


def test_a_loaded_policy_acts_on_one_observation_or_many_as_the_checkpoint_would(work: Path) -> None:
    from rollcall.deploy import load_policy

    policy = load_policy("runs/small")
    batch = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    actions = policy.act(batch)
    assert actions.shape == (5,)
    assert [policy.act(row) for row in batch] == actions.tolist()
    assert all(policy.action_space.contains(action) for action in actions)
    with pytest.raises(ValueError, match="observations have shapes"):
        policy.act(np.zeros((2, 2, 4), np.float32))
    with pytest.raises(ValueError, match=r"act: its observation has shape \(5, 3\), and observation_space says"):
        policy.act(np.zeros((5, 3)))
    assert policy.act(batch[0], action_mask=np.array([0, 1])) == 1
    assert policy.act(batch, action_mask=np.array([[1, 0]] * 5)).tolist() == [0] * 5
    mask: Any  # as a caller may give it
    for mask in ([1], [0, -np.inf], [[0, 1]] * 4, [0, 0]):
        with pytest.raises(ValueError, match="action_mask"):
            policy.act(batch, action_mask=mask)


def test_training_from_python_is_training_from_the_command_line(work: Path) -> None:
    from rollcall.deploy import train

    summary = train("small.yaml", seed=0, actors={"num": 1})
    assert summary["run_directory"] == "runs/small-2"
    assert summary["weights_hash"] == json.loads(Path("runs/small/summary.json").read_text())["weights_hash"]


def test_an_audit_that_finds_something_exits_1_with_a_line_for_each(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["audit", "small"]) == 0
    assert "the books balance" in capsys.readouterr().out
    log = work / "runs/small/logs/consumption.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert main.main(["audit", "small"]) == 1
    assert capsys.readouterr().out.splitlines()


def test_an_unexpected_failure_is_one_line_and_its_traceback_is_in_the_runs_log(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(drive: Any, *, resume: bool) -> str:
        drive._recorder.on_start({"start_step": 0, "epoch": 1})
        raise RuntimeError("the disk\nis on fire")

    monkeypatch.setattr(OnlineDrive, "carry_out", broken)
    assert main.main(["train", "small.yaml"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["rollcall: error: RuntimeError: the disk is on fire (traceback in runs/small-2/logs/driver.log)"]
    assert "raise RuntimeError" in Path("runs/small-2/logs/driver.log").read_text()
    summary = json.loads(Path("runs/small-2/summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "RuntimeError: the disk is on fire")
    assert "the disk is on fire" in Path("runs/small-2/report.html").read_text()


FAILS = """
import gymnasium as gym
import numpy as np

class Fails(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, what):
        self.what = what

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), self.reward(), False, False, {}

    def reward(self):
        if self.what == "raises":
            raise KeyError("price " * 150)  # the line at fault
        return "1.0"
"""


def test_a_failing_env_ends_the_run_with_the_line_of_its_own_code_and_a_whole_traceback_in_the_log(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "fails.py").write_text(FAILS)
    monkeypatch.syspath_prepend(str(work))
    overrides = ["env=fails:Fails", "env.kwargs.what=raises", "name=raises", "actors.max_env_restarts=0"]
    assert main.main(["train", "small.yaml", *overrides]) == 1
    (line,) = (found for found in capsys.readouterr().err.splitlines() if "rollcall: error" in found)
    at_fault = next(i for i, text in enumerate(FAILS.splitlines(), 1) if "the line at fault" in text)
    assert f"fails.py, line {at_fault}, in reward: " in line
    assert "Traceback" not in line and line.endswith("logs/driver.log)")
    log = Path("runs/raises/logs/driver.log").read_text()
    assert "# the line at fault" in log and "\n  File " in log
    assert "Traceback" not in json.loads(Path("runs/raises/summary.json").read_text())["error"]

    assert main.main(["train", "small.yaml", "env=fails:Fails", "env.kwargs.what=text", "name=text"]) == 1
    (line,) = (found for found in capsys.readouterr().err.splitlines() if "rollcall: error" in found)
    assert "step 1: its reward is '1.0' (str), and no number: return a float" in line


def rollcall(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rollcall.deploy.cli", *arguments]


def test_help_and_recipes_answer_at_once_without_importing_torch_or_ray() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); from rollcall.deploy.cli import main; "
        "code = main.main(['recipes']); took = time.perf_counter() - began; "
        "heavy = {'torch', 'ray', 'gymnasium', 'pydantic', 'numpy'} & set(sys.modules); "
        "assert code == 0 and not heavy, heavy; assert took < 0.5, took"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "cartpole-ppo" in done.stdout
    helped = subprocess.run(rollcall("--help"), capture_output=True, text=True, timeout=60, check=False)
    assert helped.returncode == 0
    assert "130 interrupted" in helped.stdout


def test_a_process_that_is_refused_exits_2_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = rollcall("train", "cartpole-ppo", "learner.learning_rte=1")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "rollcall: error: learner.learning_rte = 1 (command line): unknown key; did you mean learner.learning_rate?\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_with_a_checkpoint_from_which_it_goes_on(
    tmp_path: Path, bench: Bench, number: signal.Signals
) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE.replace("total_learner_steps: 4", "total_learner_steps: 100_000"))
    run = bench.start("train", "small.yaml", name="small")
    run.wait_for_step(4)
    run.process.send_signal(number)
    assert run.wait(60).process.returncode == 130, run.errors
    assert f"{number.name}: stopping with a checkpoint" in run.errors
    assert run.output.splitlines()[-1] == "go on with: rollcall resume runs/small"
    summary = json.loads((tmp_path / "runs/small/summary.json").read_text())
    assert summary["status"] == "stopped"
    steps = summary["learner_steps"]
    assert list_checkpoints(tmp_path / "runs/small")[-1].name == f"step-{steps:08d}"
    assert len(read_jsonl(tmp_path / "runs/small/metrics.jsonl")) == steps


@pytest.mark.parametrize(("checkpoint", "code"), [(True, 130), (False, 1)])
def test_a_second_signal_ends_the_run_at_once(tmp_path: Path, checkpoint: bool, code: int) -> None:
    if checkpoint:
        (tmp_path / "checkpoints/step-00000001").mkdir(parents=True)
        (tmp_path / "checkpoints/step-00000001/manifest.json").write_text("{}")
    program = (
        "import time; from pathlib import Path; from rollcall.deploy.drive.signals import stop_on_signals\n"
        "with stop_on_signals(Path('.')) as stop:\n"
        "    print('ready', flush=True)\n"
        "    stop.wait()\n"
        "    print('stopping', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        for word in ("ready\n", "stopping\n"):
            assert process.stdout.readline() == word
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code
    assert "stopping at once" in err
