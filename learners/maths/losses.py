"""Losses and diagnostics as pure functions over tensors of any one shape: sums over valid steps / num_valid.
This file must never know of policies, configs, minibatches or processes.

`mask` is float, 1 where a step is experience, and what stands at a masked step must be finite. `num_valid` is given
and not counted here: with the count of the whole minibatch, the losses (and gradients) of its parts add up to those
of the whole, however it is divided among processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def masked_mean(x: Tensor, *, mask: Tensor, num_valid: Tensor) -> Tensor:
    """sum(x * mask) / num_valid. A dot product: one operation forwards and one backwards, with no intermediate."""
    return torch.dot(x.flatten(), mask.flatten()) / num_valid


def policy_gradient_loss(*, target_logprobs: Tensor, advantages: Tensor, mask: Tensor, num_valid: Tensor) -> Tensor:
    """-mean(log pi(a|s) * advantage): its gradient is the policy gradient (Williams, 1992)."""
    return -masked_mean(target_logprobs * advantages, mask=mask, num_valid=num_valid)


def clipped_surrogate_loss(
    *, ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, mask: Tensor, num_valid: Tensor
) -> Tensor:
    """-mean(min(ratio * A, clamp(ratio, 1 - clip_low, 1 + clip_high) * A)) (Schulman et al., 2017, arXiv:1707.06347).

    `ratio` is pi(a|s) / behaviour(a|s). Two bounds, as in DAPO (Yu et al., 2025, arXiv:2503.14476, "clip-higher").
    """
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask=mask, num_valid=num_valid)


def squared_value_loss(*, values: Tensor, returns: Tensor, mask: Tensor, num_valid: Tensor) -> Tensor:
    """mean((V - R)^2) / 2."""
    return 0.5 * masked_mean((values - returns).square(), mask=mask, num_valid=num_valid)


def clipped_value_loss(
    *,
    values: Tensor,
    behaviour_values: Tensor,
    returns: Tensor,
    clip_range: float,
    mask: Tensor,
    num_valid: Tensor,
) -> Tensor:
    """mean(max((V - R)^2, (V_clipped - R)^2)) / 2, V_clipped within clip_range of `behaviour_values`, the values before
    the update. The unit of clip_range is that of the returns."""
    clipped = behaviour_values + (values - behaviour_values).clamp(-clip_range, clip_range)
    worse = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * masked_mean(worse, mask=mask, num_valid=num_valid)


def huber_value_loss(*, values: Tensor, returns: Tensor, delta: float, mask: Tensor, num_valid: Tensor) -> Tensor:
    """mean of (V - R)^2 / 2 where |V - R| <= delta, and of delta * (|V - R| - delta / 2) beyond."""
    return masked_mean(
        functional.huber_loss(values, returns, reduction="none", delta=delta), mask=mask, num_valid=num_valid
    )


def normalise_advantages(
    *, advantages: Tensor, mask: Tensor, dims: Sequence[int] | None = None, epsilon: float = 1e-8
) -> Tensor:
    """(A - mean) / (standard deviation + epsilon), moments over the valid steps along `dims` (None: along all).

    Done before a minibatch is divided among processes, so the moments are those of the whole. The deviation is that of
    the population: finite, and the result zero, with a single valid step.
    """
    dims = tuple(range(advantages.dim())) if dims is None else tuple(dims)
    count = mask.sum(dims, keepdim=True).clamp_(min=1.0)
    centred = advantages - (advantages * mask).sum(dims, keepdim=True) / count
    variance = (centred.square() * mask).sum(dims, keepdim=True) / count
    return centred / (variance.sqrt() + epsilon)


def approximate_kl(*, log_ratio: Tensor, mask: Tensor, num_valid: Tensor) -> Tensor:
    """Estimates KL(behaviour || pi) from actions of the behaviour policy: mean((ratio - 1) - log ratio).

    The estimator k3 (Schulman, 2020, "Approximating KL divergence"): unbiased, and never negative.
    """
    return masked_mean(log_ratio.expm1() - log_ratio, mask=mask, num_valid=num_valid)


def clip_fraction(*, ratio: Tensor, clip_low: float, clip_high: float, mask: Tensor, num_valid: Tensor) -> Tensor:
    """The fraction of valid steps whose ratio lies outside [1 - clip_low, 1 + clip_high], whatever the advantage."""
    outside = (ratio < 1.0 - clip_low) | (ratio > 1.0 + clip_high)
    return masked_mean(outside.to(mask.dtype), mask=mask, num_valid=num_valid)


def explained_variance(*, values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over the valid steps: 1 is a perfect critic, 0 is no better than a constant. NaN if the
    returns do not vary."""
    count = mask.sum()

    def variance(x: Tensor) -> Tensor:
        mean = (x * mask).sum() / count
        return ((x - mean).square() * mask).sum() / count

    total = variance(returns)
    return torch.where(total > 0, 1.0 - variance(returns - values) / total, torch.nan)
