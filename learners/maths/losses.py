"""Losses and diagnostics as pure functions over tensors of any one shape: sums over valid steps / num_valid.

`mask` is float, 1 where a step is experience, and what stands at a masked step must be finite. `num_valid` is given
and not counted here: with the count of the whole minibatch, the losses (and gradients) of its parts add up to those
of the whole, however it is divided among processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rollcall.learners.maths.choices import KLEstimator


def masked_mean(x: Tensor, *, mask: Tensor, num_valid: Tensor) -> Tensor:
    """sum(x * mask) / num_valid. A dot product: one operation forwards and one backwards, with no intermediate."""
    return torch.dot(x.flatten(), mask.flatten()) / num_valid


def policy_gradient_loss(*, target_logprobs: Tensor, advantages: Tensor, mask: Tensor, num_valid: Tensor) -> Tensor:
    """-mean(log pi(a|s) * advantage): its gradient is the policy gradient (Williams, 1992)."""
    return -masked_mean(target_logprobs * advantages, mask=mask, num_valid=num_valid)


def clipped_surrogate(
    *, ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """-min(ratio * A, clamp(ratio, 1 - clip_low, 1 + clip_high) * A) (Schulman et al., 2017, arXiv:1707.06347), one
    term per step or token. Two bounds, as in DAPO (Yu et al., 2025, arXiv:2503.14476, "clip-higher").

    `ratio` is pi / anchor, where the anchor is the behaviour or the proximal policy. With dual_clip = c, where A < 0
    the objective is not below c * A: a ratio above c pushes no more (Ye et al., 2020, arXiv:1912.09729).

    Returns:
      The loss, and a mask, True where a bound is the active branch, so that there is no gradient.

    Raises:
      ValueError: when shapes differ, or dual_clip is not above 1.
    """
    same_shape(ratio=ratio, advantages=advantages)
    free = ratio * advantages
    bound = ratio.detach().clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    # Within the band the branches are equal, and torch.minimum would halve the gradient: the free one carries it.
    clipped = bound < free
    objective = torch.where(clipped, bound, free)
    if dual_clip is not None:
        if dual_clip <= 1.0:
            raise ValueError(f"dual_clip={dual_clip}: must be above 1, or it would cut where the policy did not move")
        floor = dual_clip * advantages
        floored = (advantages < 0) & (objective.detach() < floor)
        objective = torch.where(floored, floor, objective)
        clipped = clipped | floored
    return -objective, clipped


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


def k3(log_ratio: Tensor) -> Tensor:
    """KL(p || q) from log_ratio = log q - log p at draws of p: ratio - 1 - log ratio, unbiased and never negative
    (Schulman, 2020, "Approximating KL divergence")."""
    return log_ratio.expm1() - log_ratio


def kl_estimate(*, logprobs: Tensor, reference_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """KL(pi || reference) from draws of pi, a number for each (Schulman, 2020).

    With log r = log reference - log pi: k1 is -log r, unbiased; k2 is (log r)^2 / 2, biased, but its gradient is that
    of the KL; k3 is r - 1 - log r. As a term of a loss k1 does nothing: its gradient has mean zero.

    Raises:
      ValueError: when shapes differ or the estimator is unknown.
    """
    same_shape(logprobs=logprobs, reference_logprobs=reference_logprobs)
    log_ratio = reference_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        return k3(log_ratio)
    raise ValueError(f"estimator={estimator!r}: is k1, k2 or k3")


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


def same_shape(**tensors: Tensor) -> None:
    """Raises ValueError when shapes differ, naming the first that does."""
    first, *others = tensors
    for name in others:
        if tensors[name].shape != tensors[first].shape:
            raise ValueError(
                f"{name} has shape {list(tensors[name].shape)}, {first} has {list(tensors[first].shape)}: "
                "each needs one value per token"
            )
