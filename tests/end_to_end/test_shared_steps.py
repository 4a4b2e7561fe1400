"""Runs on data sets with several learner processes: each step is that of one process, whole or in pieces, a resumed run
goes on to the same bits, and whoever dies is said in one line and left behind by nobody."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file

from rollcall.cluster.checkpoint import list_checkpoints, load_weights
from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.deploy.cli.main import main
from rollcall.deploy.drive.learner_group import check_devices
from rollcall.deploy.drive.lifecycle import carry_out
from rollcall.deploy.kinds.beginning import new_run
from rollcall.deploy.kinds.kind import StoredRun
from rollcall.deploy.kinds.recipes import load_recipe, load_supervised
from tests.deploy.kinds.preferences.test_preference_adapters import StopsAt
from tests.deploy.kinds.preferences.test_preference_runs import DIRECT, REWARD
from tests.needs import require, require_module
from tests.runs import Bench, Run

require_module("transformers")
require("peft")

SHORT = ("total_learner_steps=4", "learner.learning_rate=1e-3")
TWO = ("learner.num_processes=2",)
IN_PIECES = (*TWO, "learner.sharding=fsdp")
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "dpo": ("synthetic-dpo", (*DIRECT, *SHORT)),
    "kto": ("synthetic-kto", (*DIRECT, *SHORT)),
    "group_dpo": ("synthetic-dpo", (*DIRECT, *SHORT, "algorithm=group_dpo")),
    "dpo-lora": ("synthetic-dpo", (*DIRECT, *SHORT, "policy.lora={rank: 4}")),
    # Two or three tokens at once: each pass's logits in several chunks.
    "dpo-chunks": ("synthetic-dpo", (*DIRECT, *SHORT, "policy.logits_workspace_mib=0.001", "kl_prompts=0")),
    "reward": ("synthetic-reward", (*REWARD, *SHORT, "keep=best", "eval_every=1", "patience=null")),
    "reward-lora": ("synthetic-reward", (*REWARD, *SHORT, "model.lora={rank: 4}", "model.members=2")),
    "sft": ("sums.yaml", ()),
    "sft-lora": ("sums.yaml", ("policy.warm_start.lora={rank: 4}",)),
}
BEGINS = {
    "synthetic-dpo": "warm_start",
    "synthetic-kto": "warm_start",
    "synthetic-reward": "start",
    "sums.yaml": "model",
}
LEAVES = {"direct": "policy", "reward_model": "model", "supervised": "warm_start"}
SUMS = """\
task: {name: arithmetic, digits: 1, num_eval_rows: 10}
policy:
  model: tiny
  tiny: {hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}
  warm_start: {steps: 4, batch_size: 16, learning_rate: 1e-3, threads: 1}
algorithm: grpo
total_learner_steps: 1
actors: {sampling: {max_tokens: 4}}
eval: {num_rows: 0}
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.yaml").write_text(SUMS)
    return tmp_path


def begun(case: str, name: str, *overrides: str) -> StoredRun:
    recipe, settings = CASES[case]
    read = load_supervised if case.startswith("sft") else load_recipe
    return new_run(read(recipe, [*settings, *overrides, f"name={name}"]), named=recipe, explicit=True)


def trained(case: str, name: str, *overrides: str) -> tuple[StoredRun, dict[str, Any]]:
    run = begun(case, name, *overrides)
    return run, carry_out(run)


def learnt(run: StoredRun) -> dict[str, np.ndarray[Any, Any]]:
    return dict(load_weights(list_checkpoints(run.directory)[-1]).tensors())


def kept(run: StoredRun) -> dict[str, np.ndarray[Any, Any]]:
    """The model that the run leaves."""
    found: dict[str, np.ndarray[Any, Any]] = load_file(run.directory / LEAVES[run.kind.name] / "model.safetensors")
    return found


def assert_near(one: dict[str, Any], other: dict[str, Any], atol: float) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, atol=atol, rtol=0, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("sharing", [TWO, IN_PIECES], ids=["whole", "in-pieces"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_steps_of_one(work: Path, case: str, sharing: tuple[str, ...]) -> None:
    alone, first = trained(case, "alone")
    shared, second = trained(case, "shared", *sharing)
    assert second["status"] == "completed" and second["learner_steps"] == 4
    # Adam divides a gradient by its own size: where it is all but zero, the order of sums is seen in the step.
    assert_near(learnt(alone), learnt(shared), atol=1e-5)
    assert_near(kept(alone), kept(shared), atol=1e-5)
    given = load_file(alone.directory / BEGINS[CASES[case][0]] / "model.safetensors")
    moved = [np.abs(array - given[name]).max() for name, array in kept(alone).items() if name in given]
    assert max(moved) > 3e-4, "it learned"
    for one, other in zip(records(alone), records(shared), strict=True):
        assert one.keys() == other.keys()
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
    if case not in ("sft", "sft-lora"):
        assert second["final_eval"]["eval_loss"] == pytest.approx(first["final_eval"]["eval_loss"], abs=1e-4)
    assert not left_behind(shared)


def records(run: StoredRun) -> list[dict[str, Any]]:
    return Run(run.directory, None).steps()  # type: ignore[arg-type]


def left_behind(run: StoredRun) -> list[psutil.Process]:
    """Learner processes of a run that are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any(part.endswith("learner_member") for part in line) and str(run.directory) in line:
            found.append(process)
    return found


@pytest.mark.long
@pytest.mark.parametrize(("case", "sharing"), [("dpo", TWO), ("dpo-lora", IN_PIECES), ("reward", IN_PIECES)])
def test_a_stopped_run_of_two_processes_goes_on_to_the_same_bits(
    work: Path, case: str, sharing: tuple[str, ...]
) -> None:
    whole, _ = trained(case, "whole", *sharing)
    parted, stop = begun(case, "parted", *sharing), threading.Event()
    stopped = carry_out(parted, stop_requested=stop.is_set, console=[StopsAt(1, stop)])  # type: ignore[list-item]
    assert (stopped["status"], stopped["learner_steps"]) == ("stopped", 2)
    assert carry_out(parted, resume=True)["status"] == "completed"
    assert_near(learnt(whole), learnt(parted), atol=0)
    assert_near(kept(whole), kept(parted), atol=0)


@pytest.mark.long
@pytest.mark.parametrize("case", ["reward", "dpo-lora"])
def test_a_checkpoint_of_two_processes_is_read_by_one(
    work: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, summary = trained(case, "shared", *IN_PIECES)
    capsys.readouterr()
    assert main(["eval", "shared", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["eval_loss"] == pytest.approx(summary["held_out"].get("loss", summary["final_eval"]["eval_loss"]))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(tmp_path)) as bench:
        yield bench


LONGER = (*DIRECT, *TWO, "total_learner_steps=400", "kl_prompts=0", "eval_every=400", "checkpoint.every_steps=1")


def members_of(run: Run) -> list[psutil.Process]:
    found = [child for child in psutil.Process(run.process.pid).children(recursive=True)
             if any("learner_member" in part for part in child.cmdline())]  # fmt: skip
    assert found
    return found


@pytest.mark.long
def test_whoever_is_killed_is_said_in_a_line_the_others_end_and_the_run_can_be_resumed(bench: Bench) -> None:
    run = bench.start("train", "synthetic-dpo", *LONGER, "name=run")
    run.wait_for_step(2)
    (member,) = members_of(run)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal sends them to all: the driver decides
        member.send_signal(number)
    run.wait_for_step(len(run.steps()) + 1)
    member.send_signal(signal.SIGKILL)
    run.wait(120)
    assert run.process.returncode == 1
    assert "learner process 1 was killed by signal 9" in run.errors.splitlines()[-1]
    assert "Traceback" not in run.errors
    # The driver itself: its process ends, and they with it.
    again = bench.start("resume", "run")
    again.wait_for_step(len(again.steps()) + 1)
    (member,) = members_of(again)
    again.process.send_signal(signal.SIGKILL)
    again.wait(60)
    deadline = time.monotonic() + 30
    while member.is_running() and member.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "a learner process outlived its driver"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["train", "synthetic-dpo", "learner.num_processes=200"],
            "learner.num_processes = 200 (command line): more learner proc",
        ),
        (["train", "synthetic-dpo", "learner.sharding=fsdp"], "there is one learner process, with nobody to share"),
        (
            ["reward", "train", "synthetic-reward", "model={kind: text, start: words}", *IN_PIECES],
            "such a model is small: cutting it gains nothing",
        ),
        (["train", "synthetic-dpo", "learner.num_processes=0"], "learner.num_processes = 0 (command line): "),
    ],
)
def test_what_processes_cannot_share_is_refused_in_a_line(
    work: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not list(Path().glob("runs/*"))


@pytest.mark.long
def test_a_process_that_does_not_start_is_named_with_what_it_said_last(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollcall.deploy.drive.learner_group._MEMBER", "rollcall.deploy.drive.nobody")
    named = r"learner process 1 ended with 1 \(.*No module named .*nobody.*\): see to that, then start the run again"
    with pytest.raises(RollcallError, match=named):
        trained("dpo", "run", *TWO)
    assert not {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} & os.environ.keys(), "another run may be on many machines"


@pytest.mark.parametrize(
    ("name", "kind", "number", "told"),
    [
        ("auto", "cuda", 4, "each takes a GPU, and there are 3: use fewer, or learner.device=cpu"),
        ("cuda:1", "cuda", 2, "2 learner processes take a GPU each: use auto, or one process"),
        ("auto", "cuda", 3, ""),
        ("cpu", "cpu", 9, ""),
    ],
)
def test_several_processes_take_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, number: int, told: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(BadInput, match=told) if told else nullcontext():
        check_devices(name, torch.device(kind), number)
