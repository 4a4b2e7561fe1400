"""KTO with a real model, against log-probabilities taken one sequence at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.preferences.kto import KTO
from rollcall.learners.algorithms.preferences.kto_config import KTOConfig
from rollcall.learners.collators.preferences import LabelledCollator
from rollcall.learners.data.comparisons import RankedCandidates, TokenSequence
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.language.tiny_model import write_tiny_model
from tests.learners.algorithms.preferences.test_direct_methods import logprob, policy, sequence
from tests.learners.experience import context_of
from tests.needs import require

require("transformers")

CPU = torch.device("cpu")
ROWS = [
    RankedCandidates((sequence([3, 4], [5, 6, 1]),), (0,)),
    RankedCandidates((sequence([5], [8, 8, 8, 8, 1]),), (1,)),
    RankedCandidates((sequence([6, 6, 6], [4, 1]),), (1,)),
    RankedCandidates((sequence([7], [3, 1]),), (0,)),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, alphabet="abcdefgh", hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, seed=3)
    return folder


@pytest.fixture
def models(directory: Path) -> dict[str, nn.Module]:
    return {"policy": policy(directory, shift=0.05), "reference": policy(directory).requires_grad_(False)}


def ratio(models: dict[str, nn.Module], prompt: TokenSequence, response: TokenSequence) -> Tensor:
    """log pi / ref of one row's response after another's prompt."""
    tokens = np.concatenate([prompt.token_ids[: prompt.num_prompt], response.token_ids[response.num_prompt :]])
    one = TokenSequence(tokens, prompt.num_prompt)
    return logprob(models["policy"], one) - logprob(models["reference"], one).detach()


def literal(models: dict[str, nn.Module], *, beta: float, weights: tuple[float, float]) -> tuple[Tensor, float]:
    """(loss, baseline), as the paper has them."""
    rows = [item.candidates[0] for item in ROWS]
    mismatched = [ratio(models, row, rows[(i + 1) % len(rows)]) for i, row in enumerate(rows)]
    z = max(0.0, float(torch.stack(mismatched).detach().mean()))
    terms = []
    for item, row in zip(ROWS, rows, strict=True):
        r = ratio(models, row, row)
        if item.ranks == (0,):
            terms.append(weights[0] - weights[0] * torch.sigmoid(beta * (r - z)))
        else:
            terms.append(weights[1] - weights[1] * torch.sigmoid(beta * (z - r)))
    return torch.stack(terms).mean(), z


@pytest.mark.parametrize("budget", [1, 16, 4096])
def test_the_loss_and_its_gradient_are_the_papers_however_the_batch_is_divided(
    models: dict[str, nn.Module], budget: int
) -> None:
    algorithm = KTO(KTOConfig(beta=0.3, desirable_weight=1.3, undesirable_weight=0.8, budget=budget))
    batch = LabelledCollator(max_tokens=20).collate(ROWS, CPU, step=0)
    context = context_of(models)
    prepared = algorithm.prepare(context, batch)
    (minibatch,) = algorithm.minibatches(context, prepared)
    losses = [algorithm.loss(context, part) for part in minibatch.shards(0, 1)]
    found = torch.stack([item.loss for item in losses]).sum()
    expected, z = literal(models, beta=0.3, weights=(1.3, 0.8))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(prepared.baseline) == pytest.approx(z, abs=1e-4)
    assert sum(float(item.metrics["baseline"]) for item in losses) == pytest.approx(z, abs=1e-4)
    assert sum(float(item.metrics["desirable_share"]) for item in losses) == pytest.approx(0.5)
    weights = list(models["policy"].parameters())
    for one, other in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-3)


def test_a_response_that_does_not_belong_is_cut_to_what_the_model_takes_and_is_never_empty() -> None:
    collator = LabelledCollator(max_tokens=4)
    batch = collator.collate(ROWS, CPU, step=0)
    sizes = batch.candidates.sizes
    assert [sizes[i] for i in batch.pairs.worse.tolist()] == [4, 3, 4, 4]
    assert collator.metrics(batch)["trained_size"] == sum(sizes[i] for i in batch.pairs.better.tolist())
    short = LabelledCollator(max_tokens=2).collate(ROWS, CPU, step=0)
    assert [short.candidates.sizes[i] for i in short.pairs.worse.tolist()] == [3, 2, 4, 2], "a token at the least"


def test_at_the_reference_half_of_what_can_be_gained_is_lost_and_the_learner_tells_the_rows_apart(
    directory: Path,
) -> None:
    trainer = Learner(
        models={"policy": policy(directory), "reference": policy(directory).requires_grad_(False)},
        algorithm=KTO(KTOConfig(beta=0.5)),
        config=LearnerConfig(learning_rate=3e-3, max_grad_norm=1.0, device="cpu"),
        policy_id="policy",
        run_seed=1,
        collator=LabelledCollator(max_tokens=20),
        published=("policy",),
    )
    results = [trainer.update(ROWS, StepOrder(step=s, epoch=0, progress=0.0))[0] for s in range(15)]
    assert results[0].metrics["mean_loss"] == pytest.approx(0.5, abs=1e-5)
    assert results[0].metrics["baseline"] == pytest.approx(0.0, abs=1e-6)
    assert results[-1].metrics["mean_loss"] < 0.35
    assert results[-1].metrics["implicit_accuracy"] == 1.0
