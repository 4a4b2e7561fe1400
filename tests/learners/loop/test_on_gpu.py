"""The same learner on a GPU as on a CPU: what it learns, what it skips, what it holds, how it goes on. But for the
last, each also runs on a CPU, so that a machine without a GPU knows the test itself to be right."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.language.grpo_config import GRPOConfig
from rollcall.learners.algorithms.language.online_dpo import OnlineDPO
from rollcall.learners.algorithms.language.online_dpo_config import OnlineDPOConfig
from rollcall.learners.batches.token_batch import TokenSample, collate_tokens
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.learners.models.language.token_policy import TokenPolicy, autocast_dtype, layout_of, load_policy_model
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
@pytest.mark.parametrize("pairs", ["best_worst", "all"])
def test_pairs_of_samples_teach_it_what_they_teach_a_cpu(model: Path, device: str, pairs: Any) -> None:
    def made(where: str) -> Any:
        algorithm = OnlineDPO(OnlineDPOConfig(pairs=pairs, token_budget=24))
        return make_learner(model, algorithm, config=LearnerConfig(learning_rate=1e-2, device=where))

    begun, expected = (parameters_after(made("cpu"), model, steps) for steps in (0, 3))
    assert np.linalg.norm(parameters_after(made(device), model) - expected) < CLOSE * np.linalg.norm(expected - begun)
    batch, order = samples(model, step=0), StepOrder(0, 1, 0.0)
    alone, other = (made(where).update(batch, order)[0].metrics for where in ("cpu", device))
    assert other == pytest.approx(alone, abs=1e-4) and other["pairs"] > 0


@DEVICES
@pytest.mark.parametrize("attention", ["sdpa", "flex"])
def test_it_learns_what_padded_rows_teach_a_cpu(model: Path, device: str, attention: Any) -> None:
    begun = parameters_after(learner(model, "cpu"), model, steps=0)
    expected = parameters_after(learner(model, "cpu"), model)
    made = learner(model, device, policy=LMPolicyConfig(attention=attention))
    batch = made._collator.collate(samples(model, step=0), torch.device(device), step=0)
    assert batch.packed == (attention == "flex")
    found = parameters_after(made, model)
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


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("bfloat16", 1e-3)])
def test_the_compiled_kernel_gives_the_loss_of_padded_rows(tmp_path: Path, dtype: Any, close: float) -> None:
    """Prints how many times as fast it is, of texts of 16 to 1,024 tokens, four to a prompt."""
    settings: dict[str, Any] = {
        "hidden_size": 512,
        "num_layers": 8,
        "num_heads": 8,
        "num_kv_heads": 4,
        "intermediate_size": 1536,
    }
    write_tiny_model(tmp_path, alphabet="0123456789", seed=1, max_position_embeddings=1024, **settings)
    rng, cuda = np.random.default_rng(0), torch.device("cuda")
    items = []
    for group in range(32):
        prompt = rng.integers(3, 13, rng.integers(8, 256))
        for length in rng.integers(8, 768, 4):
            tokens = np.concatenate([prompt, rng.integers(3, 13, length)]).astype(np.int32)
            nothing = np.zeros(len(tokens), np.float32)
            mask = np.arange(len(tokens)) >= len(prompt)
            items.append(TokenSample(tokens, mask, SampledTokens(nothing), nothing.astype(np.int64), group=group))
    losses, rates = [], []
    for attention in ("sdpa", "flex"):
        config = LMPolicyConfig(attention=attention, dtype=dtype)
        network = load_policy_model(tmp_path, config, device=cuda)
        policy = TokenPolicy(network, SamplingConfig(), autocast=autocast_dtype(config)).to(cuda)
        batch = collate_tokens(items, step=0, layout=layout_of(network, token_budget=16384)).to(cuda)
        assert batch.packed == (attention == "flex")
        for _ in range(3):
            torch.cuda.synchronize()
            began, total = time.monotonic(), 0.0
            for part in batch.micro_batches(range(batch.num_samples), 16384):
                loss = -policy(batch.rows(part)[0]).logprobs.sum() / batch.num_sampled
                loss.backward()
                total += float(loss.detach())
            torch.cuda.synchronize()
            rate = batch.num_sampled / (time.monotonic() - began)
        losses.append(total)
        rates.append(rate)
    print(f"{dtype}: sdpa {rates[0]:.0f} sampled tokens/s, flex {rates[1]:.0f}: {rates[1] / rates[0]:.2f}")
    assert abs(losses[1] - losses[0]) < close * abs(losses[0])
