"""The same learner on a GPU as on a CPU: what it learns, what it skips, what it holds, how it goes on. But for the
last, each also runs on a CPU, so that a machine without a GPU knows the test itself to be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.language.grpo import GRPO, GRPOConfig
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.models.token_policy import LMPolicyConfig
from tests.learners.token_experience import make_learner, samples, write_model
from tests.needs import require

require("transformers")

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
CLOSE = 1e-3  # of a float32 update, as a share of the way: a GPU adds up in another order


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


def learner(model: Path, device: str, *, policy: LMPolicyConfig | None = None, **settings: Any) -> Any:
    config = LearnerConfig(learning_rate=1e-2, device=device, **settings)
    return make_learner(model, GRPO(GRPOConfig(kl_coef=0.1)), policy=policy, config=config)


def parameters_after(made: Any, model: Path, steps: int = 3) -> Any:
    for step in range(steps):
        made.update(samples(model, step=step), StepOrder(step, 1, 0.0))
    return made.weights(epoch=1, version=steps).buffers["float32"]


@DEVICES
@pytest.mark.parametrize("chunks", [False, True], ids=["whole", "in-chunks"])
def test_it_learns_what_a_cpu_learns(model: Path, device: str, chunks: bool) -> None:
    begun = parameters_after(learner(model, "cpu"), model, steps=0)
    expected = parameters_after(learner(model, "cpu"), model)
    policy = LMPolicyConfig(logits_workspace_mib=0.001) if chunks else None
    found = parameters_after(learner(model, device, policy=policy), model)
    assert np.linalg.norm(found - expected) < CLOSE * np.linalg.norm(expected - begun)


@DEVICES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_finite_leaves_every_bit(model: Path, device: str, dtype: Any) -> None:
    made = learner(model, device, policy=LMPolicyConfig(dtype=dtype))
    parameters_after(made, model, steps=1)
    before = {name: tensor.clone() for name, tensor in made._state_tensors().items()}
    broken = samples(model, step=1)
    for item in broken:
        item.rewards[:] = np.nan
    report, _ = made.update(broken, StepOrder(1, 1, 0.0))
    assert report.skipped
    assert all(torch.equal(tensor, before[name]) for name, tensor in made._state_tensors().items())


@DEVICES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_of_it_goes_on_to_the_same_weights(model: Path, device: str, dtype: Any, tmp_path: Path) -> None:
    policy = LMPolicyConfig(dtype=dtype)
    first, second = (learner(model, device, policy=policy) for _ in range(2))
    parameters_after(first, model, steps=2)
    first.save(tmp_path, first.weights(epoch=1, version=2))
    second.restore(tmp_path)
    for made in (first, second):
        made.update(samples(model, step=2), StepOrder(2, 1, 0.0))
    one, other = (made.weights(epoch=1, version=3).buffers["float32"] for made in (first, second))
    np.testing.assert_allclose(one, other, rtol=0, atol=0 if device == "cpu" else 1e-6)


@pytest.mark.gpu
def test_an_optimiser_in_the_hosts_memory_learns_the_same(model: Path) -> None:
    begun = parameters_after(learner(model, "cuda"), model, steps=0)
    expected = parameters_after(learner(model, "cuda"), model)
    found = parameters_after(learner(model, "cuda", offload_optimizer=True), model)
    assert np.linalg.norm(found - expected) < CLOSE * np.linalg.norm(expected - begun)
