"""Losses against literal loops over samples, and diagnostics against what they claim to estimate."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollcall.learners.maths import losses

unhurried = settings(deadline=None)  # torch's first calls are slow, and so is a busy machine
sizes, seeds = st.integers(1, 30), st.integers(0, 2**32 - 1)


def random_samples(size: int, seed: int, num: int) -> tuple[Tensor, list[Tensor]]:
    """A mask with at least one valid sample, and `num` random tensors."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(size, generator=generator) < 0.7).to(torch.float64)
    mask[0] = 1.0
    return mask, [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(num)]


def literal_mean(terms: list[float], mask: Tensor) -> float:
    valid = [term for term, is_valid in zip(terms, mask.tolist(), strict=True) if is_valid]
    return sum(valid) / len(valid)


@unhurried
@given(sizes, seeds)
def test_the_clipped_surrogate_equals_a_loop_over_samples(size: int, seed: int) -> None:
    mask, (log_ratio, advantages) = random_samples(size, seed, 2)
    per_sample, _ = losses.clipped_surrogate(ratio=log_ratio.exp(), advantages=advantages, clip_low=0.2, clip_high=0.3)
    loss = losses.masked_mean(per_sample, mask=mask, num_valid=mask.sum())
    terms = []
    for log_r, advantage in zip(log_ratio.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(log_r)
        terms.append(-min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage))
    assert float(loss) == pytest.approx(literal_mean(terms, mask))


@unhurried
@given(sizes, seeds)
def test_value_losses_equal_loops_over_samples(size: int, seed: int) -> None:
    mask, (values, before, returns) = random_samples(size, seed, 3)
    common = {"values": values, "returns": returns, "mask": mask, "num_valid": mask.sum()}
    squared, clipped, huber = [], [], []
    for value, old, target in zip(values.tolist(), before.tolist(), returns.tolist(), strict=True):
        error = value - target
        near = old + min(max(value - old, -0.5), 0.5)
        squared.append(0.5 * error**2)
        clipped.append(0.5 * max(error**2, (near - target) ** 2))
        huber.append(0.5 * error**2 if abs(error) <= 0.7 else 0.7 * (abs(error) - 0.35))
    assert float(losses.squared_value_loss(**common)) == pytest.approx(literal_mean(squared, mask))
    of_clipped = losses.clipped_value_loss(**common, behaviour_values=before, clip_range=0.5)
    assert float(of_clipped) == pytest.approx(literal_mean(clipped, mask))
    assert float(losses.huber_value_loss(**common, delta=0.7)) == pytest.approx(literal_mean(huber, mask))


def all_losses(num_valid: Tensor, mask: Tensor, x: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    common = {"mask": mask, "num_valid": num_valid}
    ratio = x.exp()
    return [
        losses.policy_gradient_loss(target_logprobs=x, advantages=a, **common),
        losses.masked_mean(
            losses.clipped_surrogate(ratio=ratio, advantages=a, clip_low=0.2, clip_high=0.2)[0], **common
        ),
        losses.squared_value_loss(values=x, returns=a, **common),
        losses.clipped_value_loss(values=x, behaviour_values=b, returns=a, clip_range=0.2, **common),
        losses.huber_value_loss(values=x, returns=a, delta=1.0, **common),
        losses.masked_mean(x, **common),
        losses.masked_mean(losses.k3(x), **common),
        losses.clip_fraction(ratio=ratio, clip_low=0.2, clip_high=0.2, **common),
    ]


@unhurried
@given(sizes, seeds)
def test_masked_samples_add_to_no_loss_and_no_gradient(size: int, seed: int) -> None:
    mask, tensors = random_samples(size, seed, 3)
    x = tensors[0].requires_grad_()
    kept = mask.bool()
    everything = all_losses(mask.sum(), mask, x, *tensors[1:])
    valid_only = all_losses(mask.sum(), mask[kept], *(t[kept] for t in tensors))
    torch.testing.assert_close(torch.stack(everything), torch.stack(valid_only))
    (gradient,) = torch.autograd.grad(torch.stack(everything).sum(), x)
    assert not gradient[~kept].any()


@unhurried
@given(sizes, seeds, st.integers(2, 4))
def test_the_losses_of_parts_add_up_to_the_loss_of_the_whole(size: int, seed: int, num_parts: int) -> None:
    mask, tensors = random_samples(size, seed, 3)
    whole = torch.stack(all_losses(mask.sum(), mask, *tensors))
    parts = [
        torch.stack(all_losses(mask.sum(), mask[i::num_parts], *(t[i::num_parts] for t in tensors)))
        for i in range(num_parts)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole)


def test_losses_take_sequences_as_they_take_samples() -> None:
    mask, tensors = random_samples(12, 0, 3)
    flat = all_losses(mask.sum(), mask, *tensors)
    shaped = all_losses(mask.sum(), *(t.view(3, 4).t().contiguous().t() for t in (mask, *tensors)))
    torch.testing.assert_close(torch.stack(shaped), torch.stack(flat))


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.25, 1.0, False), (1.25, -1.0, True), (0.75, -1.0, False), (0.75, 1.0, True), (1.1, 1.0, True)],
)
def test_the_surrogate_stops_pushing_beyond_the_clip_but_always_pulls_back(
    ratio: float, advantage: float, moves: bool
) -> None:
    def gradient(clip_high: float) -> float:
        x = torch.tensor([ratio], requires_grad=True)
        one = torch.ones(1)
        losses.clipped_surrogate(ratio=x, advantages=advantage * one, clip_low=0.2, clip_high=clip_high)[
            0
        ].sum().backward()
        assert x.grad is not None
        return float(x.grad)

    assert gradient(clip_high=0.2) == (-advantage if moves else 0.0)
    if ratio > 1.0:
        assert gradient(clip_high=0.28) == -advantage  # the higher bound lets 1.25 move on


def test_a_ratio_of_one_clips_nothing_and_is_no_divergence() -> None:
    zeros, ones = torch.zeros(5), torch.ones(5)
    common = {"mask": ones, "num_valid": ones.sum()}
    assert float(losses.clip_fraction(ratio=ones, clip_low=0.2, clip_high=0.2, **common)) == 0.0
    assert not losses.k3(zeros).any()


def test_the_clip_fraction_counts_both_sides() -> None:
    ratio = torch.tensor([0.7, 0.9, 1.0, 1.25, 1.35])
    ones = torch.ones(5)
    fraction = losses.clip_fraction(ratio=ratio, clip_low=0.2, clip_high=0.3, mask=ones, num_valid=ones.sum())
    assert float(fraction) == pytest.approx(2 / 5)


@unhurried
@given(seeds)
def test_the_approximate_kl_has_the_kl_as_its_mean_and_is_never_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    behaviour, target = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(-1).unbind()
    log_ratio = target - behaviour
    # Every action weighed by its probability under the behaviour policy: the estimator's exact mean.
    estimate = (behaviour.exp() * losses.k3(log_ratio)).sum()
    exact = (behaviour.exp() * (behaviour - target)).sum()
    torch.testing.assert_close(estimate, exact)
    assert bool((log_ratio.exp() - 1 - log_ratio >= 0).all())


@unhurried
@given(sizes, seeds)
def test_normalised_advantages_have_the_moments_of_valid_steps_only(size: int, seed: int) -> None:
    mask, (advantages,) = random_samples(size, seed, 1)
    result = losses.normalise_advantages(advantages=advantages, mask=mask)
    valid = advantages[mask.bool()]
    torch.testing.assert_close(result, (advantages - valid.mean()) / (valid.std(correction=0) + 1e-8))


def test_a_single_valid_step_is_normalised_to_zero() -> None:
    result = losses.normalise_advantages(advantages=torch.tensor([3.0, 5.0]), mask=torch.tensor([0.0, 1.0]))
    assert float(result[1]) == 0.0
    assert bool(result.isfinite().all())


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2)])
def test_groups_are_normalised_each_by_its_own_moments(shape: tuple[int, ...]) -> None:
    mask, (advantages,) = random_samples(24, 1, 1)
    mask, advantages = mask.view(shape), advantages.view(shape)
    together = losses.normalise_advantages(advantages=advantages, mask=mask, dims=range(1, len(shape)))
    apart = [losses.normalise_advantages(advantages=a, mask=m) for a, m in zip(advantages, mask, strict=True)]
    torch.testing.assert_close(together, torch.stack(apart))


@pytest.mark.parametrize(
    ("predict", "expected"),
    [
        (lambda returns: returns, 1.0),
        (lambda returns: returns + 5.0, 1.0),
        (lambda returns: torch.zeros_like(returns), 0.0),
        (lambda returns: 0.5 * returns, 0.75),
        (lambda returns: -returns, -3.0),
    ],
)
def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one(
    predict: Callable[[Tensor], Tensor], expected: float
) -> None:
    mask, (returns,) = random_samples(20, 2, 1)
    values = torch.where(mask.bool(), predict(returns), 100.0)
    result = losses.explained_variance(values=values, returns=returns, mask=mask)
    assert float(result) == pytest.approx(expected)


def test_explained_variance_of_returns_that_do_not_vary_is_unknown() -> None:
    ones = torch.ones(3)
    assert math.isnan(float(losses.explained_variance(values=torch.zeros(3), returns=ones, mask=ones)))
