"""In which dtype a learner hands its parameters out, and that nothing is lost by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.cluster.checkpoint import read_state
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.weights import Weights, as_torch
from rollcall.cluster.messages.wire import from_bytes, to_bytes
from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.language.grpo_config import GRPOConfig
from tests.learners.token_experience import TOKEN_BUDGET, make_learner, samples, with_lora, write_model
from tests.needs import require

require("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


def learner_of(model: Path, **settings: Any) -> Any:
    return make_learner(model, GRPO(GRPOConfig(kl_coef=0.1, token_budget=TOKEN_BUDGET)), **settings)


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_published_is_what_the_learner_has_rounded_once(model: Path, lora: bool, tmp_path: Path) -> None:
    policy = with_lora() if lora else None
    whole, half = (learner_of(model, policy=policy, published_dtype=dtype) for dtype in ("float32", "bfloat16"))
    reports = [one.update(samples(model, step=0), StepOrder(0, 1, 0.0, tmp_path))[1] for one in (whole, half)]
    exact, rounded = (as_torch(weights) for weights in reports)
    assert exact.keys() == rounded.keys()
    for name, tensor in exact.items():
        assert tensor.dtype == torch.float32 and rounded[name].dtype == torch.bfloat16
        assert torch.equal(rounded[name], tensor.to(torch.bfloat16)), name
    weights = reports[1]
    assert list(weights.buffers) == ["bfloat16"] and 2 * weights.size_bytes == reports[0].size_bytes
    assert weights.checksum == weights.compute_checksum() != reports[0].checksum
    # A checkpoint's policy is in full: what is evaluated and exported lost nothing.
    written = read_state(tmp_path, "weights")
    assert written is not None
    for name, array in written[0].items():
        np.testing.assert_array_equal(array, exact[name].numpy(), err_msg=name)


def test_bfloat16_weights_come_over_the_wire_as_they_were(model: Path) -> None:
    weights = learner_of(model, published_dtype="bfloat16").weights(epoch=1, version=0)
    again = from_bytes(to_bytes(weights), Weights)
    assert again.checksum == again.compute_checksum() == weights.checksum
    for name, tensor in as_torch(again).items():
        assert torch.equal(tensor, as_torch(weights)[name])


def test_the_copy_that_engines_fetch_has_their_dtype(model: Path) -> None:
    learner = learner_of(model, published_dtype="bfloat16", keep_on_device=True)
    published = as_torch(learner.weights(epoch=1, version=0))
    assert learner.device_copy is not None
    for name, tensor in learner.device_copy.tensors.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, published[name])
