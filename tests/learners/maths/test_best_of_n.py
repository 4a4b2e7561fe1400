"""Best-of-n against its definition: subsets written out, closed forms of known distributions, and draws."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rollcall.learners.maths.best_of_n import (
    best_of_n_kl,
    best_of_n_kl_bound,
    best_of_n_probabilities,
    expected_maximum,
)


@given(scores=st.lists(st.floats(-9, 9), min_size=1, max_size=7), data=st.data())
def test_the_expected_maximum_is_the_mean_over_all_subsets(scores: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scores)))
    subsets = [max(subset) for subset in combinations(scores, n)]
    found = expected_maximum(scores=torch.tensor(scores, dtype=torch.float64), n=n)
    assert float(found) == pytest.approx(sum(subsets) / len(subsets), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        ("uniform", lambda n: n / (n + 1)),
        ("exponential", lambda n: sum(1 / k for k in range(1, n + 1))),
        ("bernoulli", lambda n: 1 - 0.7**n),
    ],
)
def test_the_estimate_is_unbiased_where_the_expected_maximum_is_known(name: str, closed: object) -> None:
    """20,000 prompts of 16 samples, seed 3; five standard errors, which chance exceeds once in a million times."""
    uniform = torch.rand(20_000, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    samples = {"uniform": uniform, "exponential": -uniform.log(), "bernoulli": (uniform < 0.3).double()}[name]
    for n in (1, 2, 4, 8, 16):
        found = expected_maximum(scores=samples, n=n)
        error = float(found.std()) / len(found) ** 0.5
        assert abs(float(found.mean()) - closed(n)) < 5 * error, n  # type: ignore[operator]


def test_very_many_samples_overflow_nothing() -> None:
    scores = torch.linspace(0, 1, 4096, dtype=torch.float64)
    assert float(expected_maximum(scores=scores, n=2048)) == pytest.approx(2048 / 2049, abs=1e-3)
    assert float(expected_maximum(scores=scores, n=4096)) == 1.0


def literal(probabilities: list[float], scores: list[float], n: int) -> list[float]:
    """All sequences of n draws, one after the other."""
    wins = [0.0] * len(scores)
    for drawn in product(range(len(scores)), repeat=n):
        best = [i for i in drawn if scores[i] == max(scores[j] for j in drawn)]
        chance = math.prod(probabilities[i] for i in drawn)
        for i in best:
            wins[i] += chance / len(best)
    return wins


def outcomes(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


@given(
    weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=4),
    levels=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    n=st.integers(1, 4),
)
def test_the_best_of_n_is_distributed_as_all_sequences_of_draws_say(
    weights: list[float], levels: list[int], n: int
) -> None:
    probabilities, scores = outcomes(weights), [float(level) for level in levels[: len(weights)]]
    found = best_of_n_probabilities(probabilities=as_tensor(probabilities), scores=as_tensor(scores), n=n)
    assert found.tolist() == pytest.approx(literal(probabilities, scores, n), abs=1e-12)


def as_tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(
    weights=st.lists(st.floats(0.001, 1), min_size=1, max_size=30),
    seed=st.integers(0, 99),
    n=st.integers(1, 200),
)
def test_the_divergence_is_never_above_its_bound(weights: list[float], seed: int, n: int) -> None:
    scores = torch.randint(0, 12, (len(weights),), generator=torch.Generator().manual_seed(seed)).double()
    found = float(best_of_n_kl(probabilities=as_tensor(outcomes(weights)), scores=scores, n=n))
    assert -1e-9 <= found <= best_of_n_kl_bound(n) + 1e-9


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_of_very_many_small_outcomes_the_bound_is_the_divergence(n: int) -> None:
    probabilities, scores = torch.full((100_000,), 1e-5, dtype=torch.float64), torch.arange(100_000.0)
    found = float(best_of_n_kl(probabilities=probabilities, scores=scores, n=n))
    assert found == pytest.approx(best_of_n_kl_bound(n), abs=1e-3)


def test_where_two_answers_score_alike_the_bound_says_far_too_much() -> None:
    """Right or wrong with 0.3 and 0.7: of 64 the best is nearly surely right, which costs log(1 / 0.3) and no more."""
    found = float(best_of_n_kl(probabilities=as_tensor([0.3, 0.7]), scores=as_tensor([1, 0]), n=64))
    assert found == pytest.approx(math.log(1 / 0.3), abs=1e-6)
    assert best_of_n_kl_bound(64) > 2.6 * found


def test_draws_agree_with_the_distribution_and_the_divergence() -> None:
    """200,000 times the best of 5 of six outcomes, seed 1: each frequency within five standard errors, and the
    divergence that they show within 0.01 nats (its error is about 0.002)."""
    probabilities, scores, n = as_tensor([0.1, 0.25, 0.05, 0.3, 0.2, 0.1]), as_tensor([3, 1, 5, 0, 2, 4]), 5
    generator = torch.Generator().manual_seed(1)
    drawn = torch.multinomial(probabilities, 200_000 * n, replacement=True, generator=generator).view(-1, n)
    best = drawn.gather(1, scores[drawn].argmax(1, keepdim=True)).squeeze(1)
    frequency = torch.bincount(best, minlength=6).double() / len(best)
    expected = best_of_n_probabilities(probabilities=probabilities, scores=scores, n=n)
    assert bool(((frequency - expected).abs() <= 5 * (expected * (1 - expected) / len(best)).sqrt()).all())
    shown = float((frequency * (frequency / probabilities).log()).sum())
    assert shown == pytest.approx(float(best_of_n_kl(probabilities=probabilities, scores=scores, n=n)), abs=0.01)


@pytest.mark.parametrize("n", [0, -1])
def test_the_best_of_none_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}"):
        best_of_n_kl_bound(n)
    with pytest.raises(ValueError, match=f"n={n}"):
        expected_maximum(scores=torch.zeros(3), n=n)
    with pytest.raises(ValueError, match="at most the 3 scores"):
        expected_maximum(scores=torch.zeros(3), n=4)
    with pytest.raises(ValueError, match="must sum to 1"):
        best_of_n_probabilities(probabilities=as_tensor([0.5, 0.6]), scores=as_tensor([0, 1]), n=2)
