"""Q-learning's mathematics against its definitions, written out as loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rollcall.learners.maths import q_learning
from rollcall.learners.maths.epsilon_greedy import EpsilonGreedy


def _literal_projection(probs: Tensor, places: Tensor, support: Tensor) -> Tensor:
    """Algorithm 1 of Bellemare et al., 2017, as it stands there."""
    least, most, number = float(support[0]), float(support[-1]), len(support)
    width = (most - least) / (number - 1)
    found = torch.zeros_like(probs)
    for i in range(len(probs)):
        for j in range(number):
            b = (min(max(float(places[i, j]), least), most) - least) / width
            low, high = int(np.floor(b)), int(np.ceil(b))
            if low == high:
                found[i, low] += probs[i, j]
            else:
                found[i, low] += probs[i, j] * (high - b)
                found[i, high] += probs[i, j] * (b - low)
    return found


def test_a_projected_distribution_is_that_of_the_papers_algorithm() -> None:
    generator = torch.Generator().manual_seed(0)
    support = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
    probs = torch.rand(20, 9, generator=generator, dtype=torch.float64).softmax(-1)
    rewards = torch.randn(20, generator=generator, dtype=torch.float64) * 2
    rewards[0] = 0.5  # onto the bins themselves
    discounts = torch.where(torch.arange(20) % 3 == 0, 0.0, 0.9).double()
    discounts[0] = 1.0
    places = q_learning.td_targets(rewards=rewards, discounts=discounts, next_values=support.expand(20, 9))
    projected = q_learning.project(probs=probs, places=places, support=support)
    assert torch.allclose(projected, _literal_projection(probs, places, support), atol=1e-12)
    assert torch.allclose(projected.sum(-1), torch.ones(20, dtype=torch.float64))
    inside = (places >= -2).all(-1) & (places <= 2).all(-1)
    assert inside.any()
    assert torch.allclose((projected @ support)[inside], (probs * places).sum(-1)[inside]), "its mean is kept"


def test_the_quantile_loss_is_that_of_every_pair_and_least_at_the_quantiles() -> None:
    generator = torch.Generator().manual_seed(1)
    quantiles, targets = torch.randn(4, 5, generator=generator), torch.randn(4, 7, generator=generator)
    found = q_learning.quantile_huber(quantiles=quantiles, targets=targets, delta=0.8)
    for b in range(4):
        total = 0.0
        for i in range(5):
            for j in range(7):
                error = float(targets[b, j] - quantiles[b, i])
                size = abs(error)
                huber = 0.5 * error**2 if size <= 0.8 else 0.8 * (size - 0.4)
                total += abs((i + 0.5) / 5 - (error < 0)) * huber / 0.8 / 7
        assert float(found[b]) == pytest.approx(total, rel=1e-5)
    samples = torch.linspace(0.0, 1.0, 201).unsqueeze(0)  # of a uniform distribution
    quantiles = torch.zeros(1, 4, requires_grad=True)
    optimiser = torch.optim.SGD([quantiles], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        q_learning.quantile_huber(quantiles=quantiles, targets=samples, delta=1e-3).sum().backward()
        optimiser.step()
    assert quantiles.detach()[0].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=0.03)


def test_targets_of_a_terminated_transition_are_its_rewards() -> None:
    rewards, discounts = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.5])
    values = torch.tensor([10.0, 10.0])
    assert q_learning.td_targets(rewards=rewards, discounts=discounts, next_values=values).tolist() == [1.0, 7.0]
    with pytest.raises(ValueError, match="discounts has shape"):
        q_learning.td_targets(rewards=rewards, discounts=discounts[:1], next_values=values)


def test_huber_is_half_the_square_and_then_a_line_of_the_same_slope() -> None:
    errors = torch.tensor([-3.0, -0.5, 0.0, 1.0, 2.0])
    assert q_learning.huber(errors).tolist() == pytest.approx([2.5, 0.125, 0.0, 0.5, 1.5])


def test_epsilon_greedy_samples_what_its_log_probabilities_say() -> None:
    """20,000 draws of seed 0: frequencies within 4 standard deviations."""
    distribution, number = EpsilonGreedy(4), 20_000
    params = torch.tensor([0.1, 0.5, 0.4, 0.9, 0.3]).expand(number, 5)  # four values, and epsilon
    for mask in (None, torch.tensor([True, True, True, False]).expand(number, 4)):
        noise = distribution.noise((number,), torch.Generator().manual_seed(0))
        actions = distribution.sample(params, noise, mask)
        allowed = 4 if mask is None else 3
        best = 3 if mask is None else 1
        for action in range(4):
            expected = 0.3 / allowed + 0.7 * (action == best) if mask is None or action < 3 else 0.0
            one = None if mask is None else mask[:1]
            logprob = distribution.log_prob(params[:1], torch.tensor([action]), one)
            assert float(logprob.exp()) == pytest.approx(expected, abs=1e-6)
            frequency = float((actions == action).float().mean())
            assert abs(frequency - expected) <= 4 * (expected * (1 - expected) / number) ** 0.5
        assert (distribution.mode(params, mask) == best).all()
        probs = [0.3 / allowed + 0.7 * (a == best) for a in range(4) if mask is None or a < 3]
        entropy = -sum(p * np.log(p) for p in probs)
        assert float(distribution.entropy(params[:1], None if mask is None else mask[:1])) == pytest.approx(entropy)


def test_a_row_that_allows_nothing_stays_finite() -> None:
    distribution, nothing = EpsilonGreedy(3), torch.zeros(1, 3, dtype=torch.bool)
    params = torch.tensor([[1.0, 2.0, 3.0, 0.5]])
    assert torch.isfinite(distribution.log_prob(params, torch.tensor([0]), nothing)).all()
    assert int(distribution.sample(params, torch.tensor([[0.1, 0.999]]), nothing)) == 2
    with pytest.raises(ValueError, match="allows none"):
        distribution.check_mask(np.zeros((1, 3), bool))
