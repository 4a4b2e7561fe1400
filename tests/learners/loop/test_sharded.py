"""A language learner in pieces: two processes that hold half of everything each give the update of one, whatever the
algorithm, and leave the checkpoints of one. Over gloo on CPUs; on GPUs it is the same code over NCCL."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.language.grpo_config import GRPOConfig
from rollcall.learners.batches.token_batch import collate_samples
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.parameters import ReplicatedParameters
from tests import ROOT
from tests.learners.token_experience import make_learner, published, samples, write_model
from tests.needs import require

require("peft")


RESUMED = ("grpo", "mixed", "critic", "adapters")
NEAR = {
    "mixed": 1e-3
}  # gradients in bfloat16 are rounded otherwise where they are added up otherwise: a third of a step
MORE = [
    pytest.param(name, marks=pytest.mark.prove) for name in (*RESUMED[2:], "bfloat16", "one-by-one", "chunks", "packed")
]
scenarios = pytest.mark.parametrize("name", [*RESUMED[:2], "pairs", *MORE])
resumed = pytest.mark.parametrize("name", [*RESUMED[:2], *MORE[:2]])


def start(rank: int, count: int, address: str, folder: Path, scenario: str) -> subprocess.Popen[str]:
    program = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.learners.loop.sharded_process",
        str(rank),
        str(count),
        address,
    ]
    arguments = [str(folder / "model"), str(folder), scenario]
    return subprocess.Popen([*program, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def finish(processes: list[subprocess.Popen[str]]) -> None:
    try:
        errors = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model."""
    directory = tmp_path_factory.mktemp("sharded")
    write_model(directory / "model")
    return directory


@pytest.fixture(scope="module")
def gone_through(model: Path) -> Callable[[str], Path]:
    @cache
    def go_through(name: str) -> Path:
        address = free_address()
        finish([start(0, 1, "", model, name)])
        finish([start(rank, 2, address, model, name) for rank in range(2)])
        return model

    return go_through


@pytest.fixture
def folder(gone_through: Callable[[str], Path], name: str) -> Path:
    """Where one process has gone through the scenario, and after it two together."""
    return gone_through(name)


def report(folder: Path, name: str, count: int, rank: int = 0) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / f"{name}-{count}-{rank}.json").read_text())
    return value


def assert_near(one: Path, other: Path, *, atol: float = 1e-5) -> None:
    first, second = np.load(one), np.load(other)
    assert first.files == second.files
    for name in first.files:
        np.testing.assert_allclose(first[name], second[name], atol=atol, rtol=0, err_msg=name)


@scenarios
def test_two_processes_with_half_of_it_each_give_the_update_of_one(folder: Path, name: str) -> None:
    assert report(folder, name, 1)["kind"] == "ReplicatedParameters"
    assert report(folder, name, 2)["kind"] == "ShardedParameters"
    assert_near(folder / f"{name}-1.0.npz", folder / f"{name}-2.0.npz", atol=0)
    for when in ("1", "3"):
        assert_near(folder / f"{name}-1.{when}.npz", folder / f"{name}-2.{when}.npz", atol=NEAR.get(name, 1e-5))
    begin, end = (np.load(folder / f"{name}-2.{when}.npz") for when in ("0", "3"))
    assert max(np.abs(end[key] - begin[key]).max() for key in begin.files) > 2e-3  # it learned


@scenarios
def test_a_policy_in_pieces_says_of_fixed_tokens_what_it_says_whole(folder: Path, name: str) -> None:
    for when in ("0", "3"):
        alone, *both = (
            np.load(folder / f"{name}-{count}.{when}.canary-{rank}.npy") for count, rank in ((1, 0), (2, 0), (2, 1))
        )
        np.testing.assert_array_equal(both[0], both[1])
        np.testing.assert_allclose(both[0], alone, atol=0.05 if name in ("bfloat16", "mixed") else 1e-4, rtol=0)


@scenarios
def test_all_processes_report_the_metrics_of_one(folder: Path, name: str) -> None:
    alone, *both = (report(folder, name, count, rank)["metrics"] for count, rank in ((1, 0), (2, 0), (2, 1)))
    assert both[0] == both[1]
    for one, shared in zip(alone, both[0], strict=True):
        assert shared == pytest.approx(one, abs=10 * NEAR.get(name, 1e-5))


@scenarios
def test_each_process_holds_about_half_of_all_bytes(folder: Path, name: str) -> None:
    """Of parameters, gradients and optimiser state, reference and critic included; of all tensors there are. What
    comes in odd numbers and what is no parameter (positions' angles, random states) is a little more than nothing."""
    whole = report(folder, name, 1)["held"]
    for rank in range(2):
        assert 0.4 < report(folder, name, 2, rank)["held"] / whole < 0.6


@scenarios
def test_a_step_that_is_not_finite_is_taken_back_on_every_process(folder: Path, name: str) -> None:
    for rank in range(2):
        found = report(folder, name, 2, rank)
        assert found["skipped"] and found["unchanged"]


@resumed
def test_a_resumed_learner_goes_on_to_the_same_bits(folder: Path, name: str) -> None:
    assert_near(folder / f"{name}-2.3.npz", folder / f"{name}-2.resumed.npz", atol=0)


@scenarios
def test_a_checkpoint_is_that_of_one_process_and_any_number_goes_on_from_it(folder: Path, name: str) -> None:
    one, two = (folder / f"{name}-{count}.checkpoint" for count in (1, 2))
    for file in ("learner.safetensors", "weights.safetensors"):
        first, second = load_file(one / file), load_file(two / file)
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert second[key].shape == value.shape
            np.testing.assert_allclose(second[key], value, atol=NEAR.get(name, 1e-5), rtol=0, err_msg=key)
    assert json.loads((one / "learner.json").read_text()) == json.loads((two / "learner.json").read_text())
    if name in RESUMED:  # The two took over what the one had left; and one can take over what the two have.
        assert_near(folder / f"{name}-1.3.npz", folder / f"{name}-2.taken-over.npz", atol=NEAR.get(name, 1e-5))
    if name == "grpo":
        learner = make_learner(folder / "model", GRPO(GRPOConfig(kl_coef=0.1)))
        learner.restore(two)
        weights = load_file(two / "weights.safetensors")
        for key, value in published(learner).items():
            np.testing.assert_array_equal(value, weights[key], err_msg=key)


def test_the_scenario_with_nine_parts_gives_the_processes_unequal_numbers(model: Path) -> None:
    batch = collate_samples(samples(model / "model", step=0), step=0)
    assert len(batch.micro_batches(range(batch.num_samples), 1)) % 2 == 1


def test_one_process_has_nobody_to_share_with_and_holds_all(model: Path) -> None:
    config = LearnerConfig(sharding="fsdp")
    learner = make_learner(model / "model", GRPO(GRPOConfig()), config=config)
    assert isinstance(learner._trained, ReplicatedParameters)


@pytest.mark.prove
def test_a_process_that_does_not_come_is_not_waited_for_for_ever(model: Path) -> None:
    address = free_address()
    processes = [start(rank, 2, address, model, "in-vain") for rank in range(2)]
    try:
        processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    found = json.loads((model / "in-vain.json").read_text())
    assert found["waited_s"] < 20 and "imed out" in found["error"]
