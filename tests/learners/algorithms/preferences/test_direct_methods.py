"""DPO, IPO and group-robust DPO with a real model, against log-probabilities taken one sequence at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.learners.algorithms.preferences.dpo import DPO
from rollcall.learners.algorithms.preferences.dpo_config import DPOConfig
from rollcall.learners.algorithms.preferences.group_dpo import GROUPS, GroupDPO, GroupWeights
from rollcall.learners.algorithms.preferences.group_dpo_config import GroupDPOConfig
from rollcall.learners.algorithms.preferences.ipo import IPO
from rollcall.learners.algorithms.preferences.ipo_config import IPOConfig
from rollcall.learners.batches.preference_batch import collate_comparisons
from rollcall.learners.collators.preferences import PreferenceCollator
from rollcall.learners.data.comparisons import RankedCandidates, TokenSequence
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model
from tests.learners.experience import context_of
from tests.needs import require

require("transformers")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, alphabet="abcdefgh", hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, seed=3)
    return folder


def policy(directory: Path, *, shift: float = 0.0) -> TokenPolicy:
    model = load_policy_model(directory, LMPolicyConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shift * torch.sin(torch.arange(parameter.numel(), dtype=torch.float32)).view_as(parameter))
    return TokenPolicy(model, SamplingConfig())


@pytest.fixture
def models(directory: Path) -> dict[str, nn.Module]:
    return {"policy": policy(directory, shift=0.05), "reference": policy(directory).requires_grad_(False)}


def sequence(prompt: list[int], response: list[int]) -> TokenSequence:
    return TokenSequence(np.array(prompt + response, np.int32), len(prompt))


COMPARISONS = [
    RankedCandidates((sequence([3, 4], [5, 6, 1]), sequence([3, 4], [7, 1])), (0, 1), group=0),
    RankedCandidates((sequence([5], [8, 8, 8, 8, 1]), sequence([5], [9, 1])), (1, 0), group=1),
    RankedCandidates((sequence([6, 6, 6], [4, 1]), sequence([6, 6, 6], [5, 5, 1])), (0, 1), group=0),
    RankedCandidates(
        (sequence([7], [3, 1]), sequence([7], [4, 4, 1]), sequence([7], [9, 3, 4, 1])), (2, 0, 1), group=0
    ),
    RankedCandidates((sequence([4], [3, 1]), sequence([4], [8, 1])), (0, 0), group=1),
]


def logprob(model: nn.Module, item: TokenSequence) -> Tensor:
    """Of the response alone, given the prompt, one token after the other."""
    tokens = torch.from_numpy(item.token_ids.astype(np.int64))
    logits = model.model(input_ids=tokens[None]).logits[0]  # type: ignore[union-attr, operator]
    terms = [logits[t - 1].log_softmax(-1)[tokens[t]] for t in range(item.num_prompt, len(tokens))]
    return torch.stack(terms).sum()


def literal_differences(
    models: dict[str, nn.Module], item: RankedCandidates[TokenSequence]
) -> list[tuple[Tensor, bool]]:
    """(h, tied) of every pair of a comparison."""
    ratios = [logprob(models["policy"], c) - logprob(models["reference"], c).detach() for c in item.candidates]
    pairs = []
    for i in range(len(ratios)):
        for j in range(i + 1, len(ratios)):
            better, worse = (i, j) if item.ranks[i] <= item.ranks[j] else (j, i)
            pairs.append((ratios[better] - ratios[worse], item.ranks[i] == item.ranks[j]))
    return pairs


def dpo_term(h: Tensor) -> Tensor:
    return -torch.log(1 / (1 + torch.exp(-0.3 * h)))


def ipo_term(h: Tensor) -> Tensor:
    return (h - 1 / (2 * 0.4)) ** 2


def literal_losses(models: dict[str, nn.Module], term: Any) -> list[Tensor]:
    """One for each comparison: the mean over its pairs; a tie's is the mean of both answers'."""
    found = []
    for item in COMPARISONS:
        terms = [(term(h) + term(-h)) / 2 if tied else term(h) for h, tied in literal_differences(models, item)]
        found.append(torch.stack(terms).mean())
    return found


def total_loss(algorithm: Any, models: dict[str, nn.Module], budget: int) -> tuple[Tensor, dict[str, float], int]:
    """The losses of all parts added up, and their metrics."""
    batch = collate_comparisons(COMPARISONS)
    context = context_of(models)
    (minibatch,) = algorithm.minibatches(context, algorithm.prepare(context, batch))
    found = [algorithm.loss(context, part)[:2] for part in minibatch.shards(0, 1)]
    metrics = {name: sum(float(m[name]) for _, m in found) for name in found[0][1]}
    return torch.stack([loss for loss, _ in found]).sum(), metrics, len(found)


@pytest.mark.parametrize(
    ("make", "term"),
    [
        (lambda budget: DPO(DPOConfig(beta=0.3, budget=budget)), dpo_term),
        (lambda budget: IPO(IPOConfig(tau=0.4, budget=budget)), ipo_term),
    ],
)
@pytest.mark.parametrize(("budget", "parts"), [(1, 5), (24, 4), (4096, 1)])
def test_the_loss_is_the_papers_however_the_batch_is_divided(
    models: dict[str, nn.Module], make: Any, term: Any, budget: int, parts: int
) -> None:
    found, metrics, divided = total_loss(make(budget), models, budget)
    assert divided == parts
    expected = torch.stack(literal_losses(models, term)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert metrics["mean_loss"] == pytest.approx(expected.item(), rel=1e-4)
    weights = list(models["policy"].parameters())
    for one, other in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-3)


@pytest.mark.parametrize(
    ("method", "term"), [(DPO(DPOConfig(beta=0.3)), dpo_term), (IPO(IPOConfig(tau=0.4)), ipo_term)]
)
def test_a_soft_label_costs_what_its_answers_cost_on_average(
    models: dict[str, nn.Module], method: Any, term: Any
) -> None:
    soft = [replace(COMPARISONS[0], probability=0.75), COMPARISONS[1], replace(COMPARISONS[2], probability=0.5)]
    context, batch = context_of(models), collate_comparisons(soft)
    (minibatch,) = method.minibatches(context, method.prepare(context, batch))
    (part,) = minibatch.shards(0, 1)
    h = [literal_differences(models, item)[0][0] for item in soft]
    terms = [0.75 * term(h[0]) + 0.25 * term(-h[0]), term(h[1]), 0.5 * term(h[2]) + 0.5 * term(-h[2])]
    torch.testing.assert_close(method.loss(context, part).loss, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)
    tied = replace(COMPARISONS[2], ranks=(0, 0))
    assert collate_comparisons([COMPARISONS[0], tied]).pairs.probabilities is None


def test_at_the_reference_itself_every_implicit_reward_is_zero(directory: Path) -> None:
    models: dict[str, nn.Module] = {"policy": policy(directory), "reference": policy(directory).requires_grad_(False)}
    found, metrics, _ = total_loss(DPO(DPOConfig()), models, 4096)
    assert found.item() == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["implicit_margin"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["log_ratio_mean"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("draw", "scale"), [("by_size", [40 / 30, 40 / 10]), ("evenly", [2.0, 2.0])])
def test_group_robust_dpo_weighs_each_group_by_alpha_and_by_how_rarely_it_is_drawn(
    models: dict[str, nn.Module], draw: Literal["evenly", "by_size"], scale: list[float]
) -> None:
    """Line 6 with the losses before the step, then line 8's weights, on groups of 30 and 10 comparisons."""
    step = 0.5
    algorithm = GroupDPO(GroupDPOConfig(beta=0.3, group_step=step, draw=draw), group_sizes=[30, 10])
    groups = algorithm.extra_models()[GROUPS]
    assert isinstance(groups, GroupWeights)
    assert groups.alpha.tolist() == [0.5, 0.5]
    found, metrics, _ = total_loss(algorithm, {**models, GROUPS: groups}, 16)

    losses = literal_losses(models, dpo_term)
    owner = [item.group for item in COMPARISONS]
    moved = []
    for group in (0, 1):
        gain = sum(scale[group] * loss.item() for loss, g in zip(losses, owner, strict=True) if g == group)
        moved.append(0.5 * math.exp(step * gain / len(COMPARISONS)))
    alpha = [value / sum(moved) for value in moved]
    assert groups.alpha.tolist() == pytest.approx(alpha, rel=1e-4)
    assert [metrics["group_weight_0"], metrics["group_weight_1"]] == pytest.approx(alpha, rel=1e-4)
    expected = torch.stack([scale[g] * alpha[g] * loss for loss, g in zip(losses, owner, strict=True)]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_with_alpha_held_at_the_groups_shares_it_is_dpo(models: dict[str, nn.Module]) -> None:
    algorithm = GroupDPO(GroupDPOConfig(beta=0.3, group_step=0.0, draw="by_size"), group_sizes=[30, 10])
    groups = GroupWeights([30, 10])
    groups.alpha.copy_(torch.tensor([0.75, 0.25]))
    robust, _, _ = total_loss(algorithm, {**models, GROUPS: groups}, 4096)
    plain, _, _ = total_loss(DPO(DPOConfig(beta=0.3)), models, 4096)
    torch.testing.assert_close(robust, plain)


def test_group_robust_ipo_is_the_same_with_the_other_loss(models: dict[str, nn.Module]) -> None:
    algorithm = GroupDPO(GroupDPOConfig(base="ipo", beta=0.4, group_step=0.0), group_sizes=[2, 2])
    found, _, _ = total_loss(algorithm, {**models, GROUPS: GroupWeights([2, 2])}, 4096)
    expected = torch.stack(literal_losses(models, ipo_term)).mean()  # N / N_g * alpha_g is 1 for both
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def learner(directory: Path, algorithm: Any) -> Learner:
    return Learner(
        models={
            "policy": policy(directory),
            "reference": policy(directory).requires_grad_(False),
        },
        algorithm=algorithm,
        config=LearnerConfig(learning_rate=3e-3, max_grad_norm=1.0, device="cpu"),
        policy_id="policy",
        run_seed=1,
        collator=PreferenceCollator(),
        published=("policy",),
    )


def robust() -> GroupDPO:
    return GroupDPO(GroupDPOConfig(beta=0.5, group_step=0.2), group_sizes=[3, 2])


def test_the_learner_raises_what_is_preferred_and_the_reference_stays(directory: Path) -> None:
    algorithm = DPO(DPOConfig(beta=0.5))
    trainer = learner(directory, algorithm)
    results = [trainer.update(COMPARISONS, StepOrder(step=s, epoch=0, progress=0.0))[0] for s in range(12)]
    assert results[0].metrics["mean_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert results[-1].metrics["mean_loss"] < 0.45
    assert results[-1].metrics["implicit_accuracy"] == pytest.approx(0.9)  # four of five, and half of the tie
    reference = trainer._models["reference"]
    for before, after in zip(policy(directory).parameters(), reference.parameters(), strict=True):
        assert torch.equal(before, after)


def test_a_restored_learner_takes_the_same_step_with_the_same_group_weights(directory: Path, tmp_path: Path) -> None:
    trainer = learner(directory, robust())
    for step in range(3):
        trainer.update(COMPARISONS, StepOrder(step=step, epoch=0, progress=0.0))
    trainer.save(tmp_path, trainer.weights(epoch=0, version=3))
    expected, _ = trainer.update(COMPARISONS, StepOrder(step=3, epoch=0, progress=0.0))
    other = learner(directory, robust())
    other.restore(tmp_path)
    found, _ = other.update(COMPARISONS, StepOrder(step=3, epoch=0, progress=0.0))
    assert found.metrics == expected.metrics
    assert expected.metrics["group_weight_0"] != 0.5
    assert other.weights(epoch=0, version=4).checksum == trainer.weights(epoch=0, version=4).checksum


def test_losses_that_are_not_finite_leave_the_group_weights_alone(models: dict[str, nn.Module]) -> None:
    groups = GroupWeights([3, 2])
    with torch.no_grad():
        next(models["policy"].parameters()).fill_(math.nan)
    total_loss(robust(), {**models, GROUPS: groups}, 4096)
    assert groups.alpha.tolist() == [0.5, 0.5]


def test_one_group_is_no_case_for_group_robustness() -> None:
    with pytest.raises(ValueError, match=r"group sizes \[5\]"):
        GroupWeights([5])
