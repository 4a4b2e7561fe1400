"""Imitation of demonstrations: the loss on their author's tokens alone, in an order that a seed and a step fix."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.learners.algorithms.language.sft import SFT
from rollcall.learners.algorithms.language.sft_config import SFTConfig
from rollcall.learners.batches.token_batch import TokenBatch
from rollcall.learners.collators.demonstrations import DemonstrationCollator
from rollcall.learners.data.demonstrations import Demonstration
from rollcall.learners.data.source import ShuffledSource
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model
from tests.learners.experience import context_of
from tests.needs import require

require("transformers")

ALPHABET = "0123456789+="
EOS = 1


def demonstration(*pieces: tuple[str, bool]) -> Demonstration:
    """(text, by the model) pieces; the model's end with an end-of-sequence token."""
    tokens: list[int] = []
    imitated: list[bool] = []
    for text, by_model in pieces:
        piece = [3 + ALPHABET.index(character) for character in text] + [EOS] * by_model
        tokens += piece
        imitated += [by_model] * len(piece)
    return Demonstration(np.array(tokens, np.int32), np.array(imitated, bool))


# A conversation among them: what stands between two turns is not imitated.
DEMONSTRATIONS = [
    demonstration(("1+2=", False), ("3", True)),
    demonstration(("12+34=", False), ("46", True)),
    demonstration(("5+6=", False), ("5+", True), ("11=", False), ("11", True)),
    demonstration(("0+0=", False), ("0", True)),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, alphabet=ALPHABET, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, seed=3)
    return folder


def make_policy(directory: Path) -> TokenPolicy:
    return TokenPolicy(load_policy_model(directory, LMPolicyConfig()), SamplingConfig())


def collate(items: list[Demonstration]) -> TokenBatch:
    return DemonstrationCollator().collate(items, torch.device("cpu"), step=0)


def losses_of_parts(policy: TokenPolicy, items: list[Demonstration], token_budget: int) -> list[torch.Tensor]:
    algorithm = SFT(SFTConfig(token_budget=token_budget))
    models = {"policy": policy}
    context = context_of(models)
    (minibatch,) = algorithm.minibatches(context, algorithm.prepare(context, collate(items)))
    return [algorithm.loss(context, part).loss for part in minibatch.shards(0, 1)]


def literal_loss(policy: TokenPolicy, items: list[Demonstration]) -> torch.Tensor:
    """The mean cross-entropy of the imitated tokens, one sequence at a time."""
    terms = []
    for item in items:
        logits = policy.model(input_ids=torch.from_numpy(item.token_ids.astype(np.int64))[None]).logits[0]
        for place, (token, imitated) in enumerate(zip(item.token_ids.tolist(), item.imitated.tolist(), strict=True)):
            if imitated:
                terms.append(nn.functional.cross_entropy(logits[place - 1], torch.tensor(token)))
    assert len(terms) == sum(int(item.imitated.sum()) for item in items)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("token_budget", [1, 16, 1000])
def test_the_loss_is_the_cross_entropy_of_the_imitated_tokens_however_they_are_divided(
    directory: Path, token_budget: int
) -> None:
    policy = make_policy(directory)
    parameters = list(policy.parameters())
    parts = losses_of_parts(policy, DEMONSTRATIONS, token_budget)
    assert len(parts) == {1: 4, 16: 3, 1000: 3}[token_budget]  # 6, 9, 14 and 6 tokens: no two lengths are near
    expected = literal_loss(policy, DEMONSTRATIONS)
    torch.testing.assert_close(torch.stack(parts).sum(), expected)
    gradients = torch.autograd.grad(torch.stack(parts).sum(), parameters)
    for one, other in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_what_the_demonstrator_did_not_say_is_not_imitated(directory: Path) -> None:
    """Another token in the context changes the loss as context, not as a target: its own logit has no gradient."""
    policy = make_policy(directory)
    logits: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        logits.append(output)

    policy.model.get_output_embeddings().register_forward_hook(keep)  # type: ignore[operator]
    (loss,) = losses_of_parts(policy, [DEMONSTRATIONS[2]], 1000)
    loss.backward()
    assert len(logits[0]) == int(DEMONSTRATIONS[2].imitated.sum())  # no logits of anything else are even computed
    assert logits[0].grad is not None
    assert bool(logits[0].grad.abs().sum(-1).gt(0).all())


# The order of demonstrations.


def numbered(count: int) -> list[Demonstration]:
    return [Demonstration(np.array([number, EOS], np.int32), np.array([False, True])) for number in range(count)]


def taken(source: ShuffledSource[Demonstration], steps: range) -> list[list[int]]:
    batches = []
    for step in steps:
        batch = source.take(step)
        assert batch is not None
        batches.append([int(item.token_ids[0]) for item in batch])
    return batches


def make_source(seed: int = 0, steps: int = 30) -> ShuffledSource[Demonstration]:
    return ShuffledSource(numbered(20), batch_size=6, steps=steps, seed=seed)


def test_every_demonstration_comes_once_per_pass_across_the_borders_of_batches() -> None:
    order = [number for batch in taken(make_source(), range(30)) for number in batch]
    passes = [order[begin : begin + 20] for begin in range(0, 180, 20)]
    assert all(sorted(one) == list(range(20)) for one in passes)
    assert all(one != other for one, other in pairwise(passes))


def test_the_order_is_a_matter_of_the_seed() -> None:
    assert taken(make_source(seed=4), range(9)) == taken(make_source(seed=4), range(9))
    assert taken(make_source(seed=4), range(9)) != taken(make_source(seed=5), range(9))


def test_a_step_has_the_same_batch_whether_or_not_others_were_taken_before_it() -> None:
    whole = taken(make_source(), range(30))
    assert taken(make_source(), range(17, 30)) == whole[17:]
    assert taken(make_source(), range(29, -1, -1)) == whole[::-1]


def test_there_are_no_batches_beyond_the_last_step() -> None:
    source = make_source(steps=3)
    assert source.take(2) is not None
    assert source.take(3) is None
    with pytest.raises(ValueError, match="rows is empty"):
        ShuffledSource([], batch_size=1, steps=1, seed=0)


# Through the learner.


def train(directory: Path, steps: range, learner: Learner | None = None) -> tuple[Learner, list[float]]:
    learner = learner or Learner(
        models={"policy": make_policy(directory)},
        algorithm=SFT(SFTConfig()),
        config=LearnerConfig(learning_rate=5e-3),
        policy_id="warm_start",
        run_seed=0,
        collator=DemonstrationCollator(),
    )
    source = ShuffledSource(DEMONSTRATIONS, batch_size=3, steps=100, seed=0)
    found = []
    for step in steps:
        batch = source.take(step)
        assert batch is not None
        result, _ = learner.update(batch, StepOrder(step=step, epoch=0, progress=0.0))
        found.append(result.metrics["negative_log_likelihood"])
    return learner, found


def test_a_few_steps_make_the_demonstrations_likely(directory: Path) -> None:
    _, found = train(directory, range(60))
    # At first 15 tokens are about equally likely, ln 15 = 2.7; four answers by heart have almost no surprise left.
    assert found[0] > 2.0
    assert max(found[-5:]) < 0.3


def test_the_learner_reports_how_many_tokens_were_imitated(directory: Path) -> None:
    learner, _ = train(directory, range(0))
    result, weights = learner.update(DEMONSTRATIONS, StepOrder(step=0, epoch=0, progress=0.0))
    assert result.metrics["trained_tokens"] == sum(int(item.imitated.sum()) for item in DEMONSTRATIONS)
    assert weights is not None
    assert weights.version == 1


def test_a_first_loss_is_reported_as_it_was_before_the_step(directory: Path) -> None:
    learner, _ = train(directory, range(0))
    with torch.no_grad():
        expected = float(literal_loss(make_policy(directory), DEMONSTRATIONS))
    result, _ = learner.update(DEMONSTRATIONS, StepOrder(step=0, epoch=0, progress=0.0))
    assert result.metrics["negative_log_likelihood"] == pytest.approx(expected, abs=1e-5)
