"""Q-learning's targets and losses, of means and of distributions of returns: pure functions over tensors. B are
transitions, n actions, Z bins or quantiles; one term per transition: whoever calls weighs and adds them up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rollcall.learners.maths.losses import same_shape


def td_targets(*, rewards: Tensor, discounts: Tensor, next_values: Tensor) -> Tensor:
    """r + discount * V(s'), [B] or, of every bin or quantile, [B, Z]. `discounts` is 0 after a termination.

    Raises:
      ValueError: when rewards and discounts are not both [B].
    """
    same_shape(rewards=rewards, discounts=discounts)
    if next_values.dim() == 2:
        rewards, discounts = rewards.unsqueeze(1), discounts.unsqueeze(1)
    return rewards + discounts * next_values


def huber(errors: Tensor, delta: float = 1.0) -> Tensor:
    """e^2 / 2 up to delta, and linear beyond (Mnih et al., 2015: the clipped error)."""
    size = errors.abs()
    return torch.where(size <= delta, 0.5 * errors.square(), delta * (size - 0.5 * delta))


def project(*, probs: Tensor, places: Tensor, support: Tensor) -> Tensor:
    """The distribution with these probabilities [B, Z] at these places [B, Z], on the support [Z], which is even: each
    share is divided among the two nearest bins, and what lies beyond the ends goes to them (Bellemare et al., 2017,
    arXiv:1707.06887, algorithm 1). Returns [B, Z]."""
    same_shape(probs=probs, places=places)
    width = (support[-1] - support[0]) / (len(support) - 1)
    position = (places.clamp(support[0], support[-1]) - support[0]) / width
    # [B, Z, Z]: the share of each place (2nd) that a bin (1st) takes: 1 at the bin itself, 0 from its neighbours on.
    bins = torch.arange(len(support), device=support.device, dtype=probs.dtype)
    shares = (1.0 - (position.unsqueeze(1) - bins.unsqueeze(-1)).abs()).clamp(min=0.0)
    return (shares @ probs.unsqueeze(-1)).squeeze(-1)


def cross_entropy(*, target_probs: Tensor, logits: Tensor) -> Tensor:
    """-sum target log p, [B], of [B, Z] both."""
    same_shape(target_probs=target_probs, logits=logits)
    return -(target_probs * functional.log_softmax(logits, -1)).sum(-1)


def quantile_huber(*, quantiles: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """The quantile regression loss, its corner rounded (Dabney et al., 2018, arXiv:1710.10044, eq. 10): the mean over
    targets [B, Z'] of the sum over quantiles [B, Z], of the shares (i + 1/2) / Z. Returns [B]."""
    num_quantiles = quantiles.shape[1]
    errors = targets.unsqueeze(1) - quantiles.unsqueeze(2)  # [B, Z, Z']
    shares = (torch.arange(num_quantiles, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / num_quantiles
    below = (errors.detach() < 0).to(quantiles.dtype)
    weights = (shares.view(1, -1, 1) - below).abs()
    return (weights * huber(errors, delta) / delta).mean(2).sum(1)
