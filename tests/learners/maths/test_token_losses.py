"""Losses over tokens against literal loops, and what each clip, estimator and correction promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollcall.learners.maths import losses, token_losses
from rollcall.learners.maths.choices import KLEstimator

unhurried = settings(deadline=None)  # torch's first calls are slow, and so is a busy machine
sizes, seeds = st.integers(1, 20), st.integers(0, 2**32 - 1)


def random_tokens(size: int, seed: int, num: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(num)]


def test_the_three_aggregations_weigh_a_short_and_a_long_sample_as_documented() -> None:
    lengths = torch.tensor([1, 3])
    token_mean = token_losses.aggregation_weights(lengths=lengths, mode="token_mean")
    sequence_mean = token_losses.aggregation_weights(lengths=lengths, mode="sequence_mean")
    fixed = token_losses.aggregation_weights(lengths=lengths, mode="fixed_length", fixed_length=8)
    assert token_mean.tolist() == [0.25, 0.25]
    torch.testing.assert_close(sequence_mean, torch.tensor([1 / 2, 1 / 6]))
    assert fixed.tolist() == [1 / 16, 1 / 16]


@unhurried
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_means_over_tokens_and_over_sequences_have_weights_that_add_up_to_one(lengths: list[int]) -> None:
    counts = torch.tensor(lengths)
    for mode in ("token_mean", "sequence_mean"):
        weights = token_losses.aggregation_weights(lengths=counts, mode=mode)
        assert float((weights * counts).sum()) == pytest.approx(1.0)


def test_aggregation_refuses_an_empty_sample_and_a_missing_length() -> None:
    with pytest.raises(ValueError, match="lengths"):
        token_losses.aggregation_weights(lengths=torch.tensor([2, 0]), mode="token_mean")
    with pytest.raises(ValueError, match="fixed_length=None"):
        token_losses.aggregation_weights(lengths=torch.tensor([2]), mode="fixed_length")


@unhurried
@given(sizes, seeds, st.sampled_from([None, 1.5]))
def test_the_clipped_surrogate_equals_a_loop_over_tokens(size: int, seed: int, dual_clip: float | None) -> None:
    logprobs, anchor, advantages = random_tokens(size, seed, 3)
    loss, clipped = losses.clipped_surrogate(
        ratio=(logprobs.requires_grad_() - anchor).exp(),
        advantages=advantages,
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=dual_clip,
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    log_ratio, loss = (logprobs - anchor).detach(), loss.detach()
    for k in range(size):
        ratio, advantage = math.exp(float(log_ratio[k])), float(advantages[k])
        objective = min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage)
        if dual_clip is not None and advantage < 0:
            objective = max(objective, dual_clip * advantage)
        free = objective == pytest.approx(ratio * advantage)
        assert float(loss[k]) == pytest.approx(-objective)
        assert float(gradient[k]) == pytest.approx(-ratio * advantage if free else 0.0)
        assert bool(clipped[k]) == (not free)


@unhurried
@given(sizes, seeds)
def test_the_surrogate_where_nothing_moved_clips_nothing_and_has_the_policy_gradient(size: int, seed: int) -> None:
    logprobs, advantages = random_tokens(size, seed, 2)
    loss, clipped = losses.clipped_surrogate(
        ratio=(logprobs.requires_grad_() - logprobs.detach()).exp(),
        advantages=advantages,
        clip_low=0.2,
        clip_high=0.2,
    )
    torch.testing.assert_close(loss.detach(), -advantages)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logprobs)[0], -advantages)
    assert not clipped.any()


@pytest.mark.parametrize(("estimator", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_kl_estimators_have_the_kl_as_their_exact_mean_or_come_near(estimator: KLEstimator, unbiased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(2, 6, generator=generator, dtype=torch.float64) * 0.3).log_softmax(-1)
    estimate = losses.kl_estimate(logprobs=policy, reference_logprobs=reference, estimator=estimator)
    mean, exact = float((policy.exp() * estimate).sum()), float((policy.exp() * (policy - reference)).sum())
    assert mean == pytest.approx(exact, rel=1e-9 if unbiased else 0.2)
    assert (estimator == "k1") == bool((estimate < 0).any())


def test_in_a_loss_k2_has_the_gradient_of_the_kl_and_k1_has_none() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1)
    policy = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)

    def mean_gradient(estimator: KLEstimator) -> Tensor:
        """The expectation over sampled tokens: their probabilities are not differentiated."""
        estimate = losses.kl_estimate(logprobs=policy, reference_logprobs=reference, estimator=estimator)
        return torch.autograd.grad((policy.exp().detach() * estimate).sum(), logits, retain_graph=True)[0]

    torch.testing.assert_close(mean_gradient("k2"), exact)
    torch.testing.assert_close(mean_gradient("k1"), torch.zeros_like(exact))


def test_a_sequence_ratio_is_the_geometric_mean_of_its_kept_tokens_ratios() -> None:
    logprobs = torch.tensor([0.1, 0.3, 0.5, 7.0], dtype=torch.float64, requires_grad=True)
    sequence, anchor = torch.tensor([0, 1, 1, 1]), torch.zeros(4, dtype=torch.float64)
    common = {"anchor_logprobs": anchor, "sequence": sequence, "num_sequences": 3}
    everything = token_losses.sequence_log_ratios(logprobs=logprobs, **common)  # type: ignore[arg-type]
    torch.testing.assert_close(everything.detach(), torch.tensor([0.1, 2.6, 2.6, 2.6], dtype=torch.float64))
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0])
    kept = token_losses.sequence_log_ratios(logprobs=logprobs, mask=mask, **common)  # type: ignore[arg-type]
    torch.testing.assert_close(kept.detach(), torch.tensor([0.1, 0.4, 0.4, 0.4], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(kept[1], logprobs)
    assert gradient.tolist() == [0.0, 0.5, 0.5, 0.0]


@unhurried
@given(sizes, seeds)
def test_the_ratio_of_a_sequence_of_one_token_is_the_tokens(size: int, seed: int) -> None:
    logprobs, anchor = random_tokens(size, seed, 2)
    of_sequences = token_losses.sequence_log_ratios(
        logprobs=logprobs, anchor_logprobs=anchor, sequence=torch.arange(size), num_sequences=size
    )
    torch.testing.assert_close(of_sequences, logprobs - anchor)


def test_cispo_clips_the_weight_of_a_token_and_never_its_gradient() -> None:
    logprobs = torch.tensor([0.0, 2.0, -2.0], requires_grad=True)
    advantages = torch.tensor([1.0, 2.0, -3.0])
    loss, clipped = token_losses.cispo_loss(
        logprobs=logprobs, anchor_logprobs=torch.zeros(3), advantages=advantages, clip_low=0.4, clip_high=1.0
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(gradient, -torch.tensor([1.0, 2.0, 0.6]) * advantages)
    assert clipped.tolist() == [0.0, 1.0, 1.0]


def test_importance_weights_without_a_cap_turn_a_mean_under_one_policy_into_that_under_another() -> None:
    behaviour, proximal = torch.stack(random_tokens(6, 3, 2)).log_softmax(-1)
    values = random_tokens(6, 4, 1)[0]
    common = {"proximal_logprobs": proximal, "behaviour_logprobs": behaviour}
    exact = token_losses.truncated_importance_weights(**common, cap=math.inf)
    torch.testing.assert_close((behaviour.exp() * exact * values).sum(), (proximal.exp() * values).sum())
    capped = token_losses.truncated_importance_weights(**common, cap=1.1)
    torch.testing.assert_close(capped, torch.minimum(exact, torch.tensor(1.1, dtype=torch.float64)))
    assert bool((exact > 1.1).any())


def test_corrections_have_no_gradient() -> None:
    logprobs = torch.zeros(2, requires_grad=True)
    weights = token_losses.truncated_importance_weights(
        proximal_logprobs=logprobs, behaviour_logprobs=torch.zeros(2), cap=2.0
    )
    assert not weights.requires_grad
    assert not token_losses.band_mask(log_ratio=logprobs, low=0.5, high=2.0).requires_grad


def test_the_band_keeps_ratios_within_it_and_its_edges() -> None:
    log_ratio = torch.tensor([0.4, 0.5, 1.0, 2.0, 2.1], dtype=torch.float64).log()
    mask = token_losses.band_mask(log_ratio=log_ratio, low=0.5 - 1e-12, high=2.0 + 1e-12)
    assert mask.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


two, three, ones = torch.zeros(2), torch.zeros(3), torch.ones(2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (
            lambda: losses.clipped_surrogate(ratio=two, advantages=three, clip_low=0.2, clip_high=0.2),
            "advantages",
        ),
        (
            lambda: losses.clipped_surrogate(ratio=two, advantages=ones, clip_low=0.2, clip_high=0.2, dual_clip=1.0),
            "dual_clip",
        ),
        (lambda: losses.kl_estimate(logprobs=two, reference_logprobs=three, estimator="k1"), "reference"),
        (
            lambda: token_losses.truncated_importance_weights(proximal_logprobs=two, behaviour_logprobs=two, cap=0.0),
            "cap",
        ),
        (lambda: token_losses.band_mask(log_ratio=two, low=2.0, high=1.0), "low"),
    ],
)
def test_a_wrong_argument_is_named(call: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()
