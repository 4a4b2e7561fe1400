"""The distribution that is sampled from, against a version that walks down the tokens one by one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollcall.learners.maths.sampling import process_logits

unhurried = settings(deadline=None)  # torch's first calls are slow, and so is a busy machine
seeds = st.integers(0, 2**32 - 1)
temperatures, masses, top_ks = st.floats(0.2, 3.0), st.floats(0.05, 1.0), st.integers(0, 9)
EDGE = 1e-4  # a nucleus that ends so near to top_p is left aside: float32 and float64 may disagree about it
VOCABULARY = 7
# Of four tokens; log-probabilities are logits too.
PROBABILITIES = torch.tensor([0.5, 0.3, 0.15, 0.05])


def random_logits(seed: int, rows: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(rows, VOCABULARY, generator=generator)
    return logits, torch.randint(VOCABULARY, (rows,), generator=generator)


def softmax(values: list[float]) -> list[float]:
    largest = max(values)
    masses = [math.exp(value - largest) for value in values]
    return [mass / sum(masses) for mass in masses]


def literal(
    logits: list[float], target: int, temperature: float, top_p: float, top_k: int
) -> tuple[float, float, bool, float]:
    """(log-probability, entropy, outside, distance of the nearest partial sum from top_p)."""
    scaled = [value / temperature for value in logits]
    ranking = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    candidates = ranking[:top_k] if top_k else ranking
    probabilities = softmax([scaled[token] for token in candidates])
    nucleus: list[int] = []
    mass, distance = 0.0, 1.0
    for token, probability in zip(candidates, probabilities, strict=True):
        if mass >= top_p:
            break
        nucleus.append(token)
        mass += probability
        distance = min(distance, abs(mass - top_p))
    outside = target not in nucleus
    if outside:
        nucleus.append(target)
    kept = softmax([scaled[token] for token in nucleus])
    entropy = -sum(p * math.log(p) for p in kept if p > 0)
    return math.log(kept[nucleus.index(target)]), entropy, outside, distance


@unhurried
@given(seeds, temperatures, masses, top_ks)
def test_what_remains_of_the_logits_equals_the_walk_down_the_tokens(
    seed: int, temperature: float, top_p: float, top_k: int
) -> None:
    logits, targets = random_logits(seed)
    result = process_logits(logits=logits, targets=targets, temperature=temperature, top_p=top_p, top_k=top_k)
    rows = [
        literal(row, target, temperature, top_p, top_k)
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    assume(top_p == 1.0 or min(distance for *_, distance in rows) > EDGE)
    torch.testing.assert_close(result.logprobs, torch.tensor([row[0] for row in rows]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.entropy, torch.tensor([row[1] for row in rows]), atol=1e-5, rtol=1e-5)
    assert result.outside.tolist() == [row[2] for row in rows]


@unhurried
@given(seeds)
def test_the_whole_distribution_at_temperature_one_is_the_log_softmax(seed: int) -> None:
    logits, targets = random_logits(seed)
    result = process_logits(logits=logits, targets=targets, temperature=1.0, top_p=1.0)
    expected = logits.log_softmax(-1)
    assert torch.equal(result.logprobs, expected.gather(-1, targets[:, None])[:, 0])
    torch.testing.assert_close(result.entropy, -(expected.exp() * expected).sum(-1))
    assert not result.outside.any()


@unhurried
@given(seeds, temperatures, masses, top_ks)
def test_the_probabilities_of_a_nucleus_add_up_to_one(seed: int, temperature: float, top_p: float, top_k: int) -> None:
    logits, _ = random_logits(seed, rows=1)
    every = process_logits(
        logits=logits.expand(VOCABULARY, -1),
        targets=torch.arange(VOCABULARY),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    )
    assert float(every.logprobs[~every.outside].exp().sum()) == pytest.approx(1.0, abs=1e-5)
    # What lies outside would make the nucleus larger by itself: less than one of a mass above one.
    assert bool((every.logprobs[every.outside] < 0).all())


def processed(target: int, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> tuple[float, bool]:
    """(probability, outside) of a token of the four."""
    result = process_logits(
        logits=PROBABILITIES.log()[None],
        targets=torch.tensor([target]),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    )
    return float(result.logprobs.exp()), bool(result.outside)


def test_a_nucleus_is_the_smallest_set_that_reaches_the_mass_renormalised() -> None:
    assert processed(0, top_p=0.7) == (pytest.approx(0.5 / 0.8), False)
    assert processed(1, top_p=0.7) == (pytest.approx(0.3 / 0.8), False)
    assert processed(1, top_p=0.4) == (pytest.approx(0.3 / 0.8), True)
    assert processed(0, top_p=0.4) == (pytest.approx(1.0), False)


def test_a_token_outside_the_nucleus_counts_into_it_and_is_marked() -> None:
    assert processed(2, top_p=0.7) == (pytest.approx(0.15 / 0.95), True)
    assert processed(3, top_p=0.7) == (pytest.approx(0.05 / 0.85), True)
    assert processed(3, top_k=1) == (pytest.approx(0.05 / 0.55), True)


def test_the_most_probable_token_is_never_outside() -> None:
    assert processed(0, top_p=1e-6) == (1.0, False)
    assert processed(0, top_k=1) == (1.0, False)


def test_the_temperature_comes_before_the_nucleus() -> None:
    # At temperature 2 the masses are as the square roots: 0.38, 0.30, 0.21, 0.12: two tokens no longer reach 0.7.
    roots = PROBABILITIES.sqrt()
    assert processed(2, temperature=1.0, top_p=0.7)[1]
    assert processed(2, temperature=2.0, top_p=0.7) == (pytest.approx(float(roots[2] / roots[:3].sum())), False)


def test_top_k_comes_before_top_p() -> None:
    # Of the two most probable, the first has 0.625: enough for 0.6, where half of everything is not.
    assert processed(1, top_p=0.6) == (pytest.approx(0.3 / 0.8), False)
    assert processed(1, top_p=0.6, top_k=2) == (pytest.approx(0.3 / 0.8), True)


def test_tokens_as_probable_as_the_kth_are_all_among_the_top_k() -> None:
    result = process_logits(
        logits=torch.tensor([[1.0, 0.0, 0.0, -9.0]]).expand(4, -1), targets=torch.arange(4), temperature=1.0, top_k=2
    )
    assert result.outside.tolist() == [False, False, False, True]


@pytest.mark.parametrize("top_k", [0, VOCABULARY, VOCABULARY + 1])
def test_a_top_k_of_the_whole_vocabulary_takes_nothing_away(top_k: int) -> None:
    logits, targets = random_logits(1)
    whole = process_logits(logits=logits, targets=targets, temperature=0.7)
    result = process_logits(logits=logits, targets=targets, temperature=0.7, top_k=top_k)
    assert torch.equal(result.logprobs, whole.logprobs)


def test_the_gradient_is_that_of_the_renormalised_distribution_and_of_no_token_beyond_it() -> None:
    logits = PROBABILITIES.log()[None].requires_grad_()
    result = process_logits(logits=logits, targets=torch.tensor([1]), temperature=0.5, top_p=0.7)
    (gradient,) = torch.autograd.grad(result.logprobs.sum(), logits)
    kept = (PROBABILITIES[:2] ** 2) / (PROBABILITIES[:2] ** 2).sum()  # temperature 0.5 squares
    expected = 2.0 * torch.tensor([[-kept[0], 1.0 - kept[1], 0.0, 0.0]])
    torch.testing.assert_close(gradient, expected)
    assert not result.entropy.requires_grad


def test_logits_of_lower_precision_are_processed_in_float32() -> None:
    logits, targets = random_logits(2)
    low = process_logits(logits=logits.bfloat16(), targets=targets, temperature=0.7, top_p=0.9)
    same = process_logits(logits=logits.bfloat16().float(), targets=targets, temperature=0.7, top_p=0.9)
    assert low.logprobs.dtype == torch.float32
    assert torch.equal(low.logprobs, same.logprobs)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -0.1), (1.0, 1.5)])
def test_a_temperature_or_a_mass_that_is_none_is_refused_by_name(temperature: float, top_p: float) -> None:
    logits, targets = random_logits(0)
    with pytest.raises(ValueError, match=f"temperature={temperature}, top_p={top_p}"):
        process_logits(logits=logits, targets=targets, temperature=temperature, top_p=top_p)
