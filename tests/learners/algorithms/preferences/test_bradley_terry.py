"""Reward models' loss with small hand-made models: of sequences and of segments, with and without an ensemble."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.preferences.bradley_terry import BradleyTerry
from rollcall.learners.algorithms.preferences.bradley_terry_config import BradleyTerryConfig
from rollcall.learners.batches.preference_batch import collate_comparisons
from rollcall.learners.collators.preferences import PreferenceCollator
from rollcall.learners.data.comparisons import RankedCandidates, Steps, TokenSequence, bootstrapped
from rollcall.learners.data.source import ShuffledSource
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import Learner
from tests.learners.experience import context_of


class LinearSteps(nn.Module):
    """M members: rewards are linear in observation and action."""

    def __init__(self, members: int, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.weight = nn.Parameter(torch.randn(members, size, generator=generator))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.weight @ torch.cat([observations, actions], -1).T


class TokenSums(nn.Module):
    """A sequence's reward is the sum of its tokens' own."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.linspace(-1, 1, 12))

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        present = torch.arange(token_ids.shape[1]) < lengths[:, None]
        return (self.values[token_ids] * present).sum(-1).unsqueeze(0)


def segments(count: int, *, seed: int = 0) -> list[RankedCandidates[Steps]]:
    generator = np.random.default_rng(seed)

    def steps() -> Steps:
        length = int(generator.integers(1, 6))
        return Steps(
            generator.normal(size=(length, 3)).astype(np.float32), generator.normal(size=(length, 1)).astype("f")
        )

    return [
        RankedCandidates((steps(), steps()), [(0, 1), (1, 0), (0, 0)][int(generator.integers(3))]) for _ in range(count)
    ]


def summed(algorithm: BradleyTerry, module: nn.Module, items: list[Any]) -> tuple[Tensor, dict[str, float]]:
    batch = collate_comparisons(items)
    (minibatch,) = algorithm.minibatches(context_of({}), algorithm.prepare(context_of({}), batch))
    found = [algorithm.loss(context_of({"reward": module}), part)[:2] for part in minibatch.shards(0, 1)]
    return torch.stack([loss for loss, _ in found]).sum(), {
        name: sum(float(m[name]) for _, m in found) for name in found[0][1]
    }


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_of_segments_each_member_learns_from_its_own_sample_that_sums_of_steps_explain_the_answers(budget: int) -> None:
    items = bootstrapped(segments(20), members=3, seed=5)
    module = LinearSteps(3, 4)
    expected = torch.zeros(())
    for member in range(3):
        for item in items:
            returns = [
                sum(
                    module.weight[member] @ torch.from_numpy(np.concatenate([o, a]))
                    for o, a in zip(c.observations, c.actions, strict=True)
                )
                for c in item.candidates
            ]
            chances = torch.softmax(torch.stack([torch.as_tensor(r) for r in returns]), 0)  # eq. 1 of Christiano et al.
            chances = 0.9 * chances + 0.05
            votes = {(0, 1): (1.0, 0.0), (1, 0): (0.0, 1.0), (0, 0): (0.5, 0.5)}[item.ranks[0], item.ranks[1]]
            entropy = -(votes[0] * chances[0].log() + votes[1] * chances[1].log())
            expected = expected + item.draws[member] * entropy / len(items)
    found, metrics = summed(BradleyTerry(BradleyTerryConfig(noise=0.1, budget=budget)), module, items)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert metrics["negative_log_likelihood"] == pytest.approx(expected.item() / 3, rel=1e-4)


def sequence(*tokens: int) -> TokenSequence:
    return TokenSequence(np.array(tokens, np.int32), 1)


def test_of_a_ranking_the_loss_is_the_mean_over_all_its_pairs() -> None:
    """InstructGPT's equation 1: - 1 / (K choose 2) * sum of log sigmoid(r_better - r_worse), all pairs in one batch."""
    module = TokenSums()
    items = [
        RankedCandidates((sequence(1, 2), sequence(1, 9, 9), sequence(1, 4)), (2, 0, 1)),
        RankedCandidates((sequence(3, 3), sequence(3, 4, 5, 6)), (0, 1), margin=0.5),
    ]
    reward = [[module.values[c.token_ids.astype(int)].sum().item() for c in item.candidates] for item in items]

    def term(difference: float) -> float:
        return math.log(1 + math.exp(-difference))

    three = [term(reward[0][1] - reward[0][2]), term(reward[0][1] - reward[0][0]), term(reward[0][2] - reward[0][0])]
    for use_margins, margin in ((True, 0.5), (False, 0.0)):
        two = term(reward[1][0] - reward[1][1] - margin)
        found, _ = summed(BradleyTerry(BradleyTerryConfig(use_margins=use_margins)), module, items)
        assert found.item() == pytest.approx((sum(three) / 3 + two) / 2, rel=1e-5)


def test_accuracy_counts_a_tie_as_half() -> None:
    module = TokenSums()  # larger tokens are worth more
    items = [
        RankedCandidates((sequence(1, 9), sequence(1, 2)), (0, 1)),
        RankedCandidates((sequence(1, 9), sequence(1, 2)), (1, 0)),
        RankedCandidates((sequence(1, 9), sequence(1, 2)), (0, 0)),
        RankedCandidates((sequence(1, 9), sequence(1, 2)), (0, 1)),
    ]
    _, metrics = summed(BradleyTerry(BradleyTerryConfig()), module, items)
    assert metrics["accuracy"] == pytest.approx(2.5 / 4)


@pytest.mark.parametrize("ties", ["half", "rao_kupper"])
def test_the_learner_finds_a_linear_reward_from_comparisons(ties: Any) -> None:
    """400 comparisons by a known reward: the learnt direction is the true one within 10 degrees, for either treatment
    of ties. (With noiseless labels the direction's error is about 1 / sqrt(400).)"""
    true = torch.tensor([1.0, -2.0, 0.5, 1.5])
    items = []
    for item in segments(400, seed=1):
        returns = [float(np.concatenate([c.observations, c.actions], 1).sum(0) @ true.numpy()) for c in item.candidates]
        gap = returns[0] - returns[1]
        items.append(RankedCandidates(item.candidates, (0, 0) if abs(gap) < 0.3 else (0, 1) if gap > 0 else (1, 0)))
    module = LinearSteps(2, 4)
    trainer = Learner(
        models={"reward": module},
        algorithm=BradleyTerry(BradleyTerryConfig(ties=ties)),
        config=LearnerConfig(learning_rate=0.05, device="cpu"),
        policy_id="reward",
        run_seed=0,
        collator=PreferenceCollator(),
    )
    source = ShuffledSource(bootstrapped(items, members=2, seed=2), batch_size=100, steps=120, seed=3)
    for step in range(120):
        batch = source.take(step)
        assert batch is not None
        result, _ = trainer.update(batch, StepOrder(step=step, epoch=0, progress=step / 120))
    cosines = torch.nn.functional.cosine_similarity(module.weight.detach(), true, dim=-1)
    assert float(cosines.min()) > math.cos(math.radians(10))
    assert result.metrics["accuracy"] > 0.85  # ties count half


def test_two_models_of_a_raters_errors_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match="its own model of a rater's errors"):
        BradleyTerryConfig(ties="rao_kupper", noise=0.1)
