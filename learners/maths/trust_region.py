"""What keeps a policy near the one before it, over tensors: knows neither networks nor losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class HasKL(Protocol):
    """A distribution whose divergence from another of its family is known."""

    def kl(self, params: Tensor, others: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """float32 [...]: KL(distribution of params || distribution of others), exact, in nats."""


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, *, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """x with A x = target, of a symmetric positive definite A that is known by `product`, v -> A v (Hestenes and
    Stiefel, 1952). In exact arithmetic P iterations solve it; the first few find most of a natural gradient.

    It ends early where the residual's square is below `tolerance` times the target's.
    """
    x = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    square = residual @ residual
    enough = tolerance * float(square)
    for _ in range(iterations):
        if float(square) <= enough:
            break
        image = product(direction)
        step = square / (direction @ image)
        x += step * direction
        residual -= step * image
        following = residual @ residual
        direction = residual + (following / square) * direction
        square = following
    return x


def adapted_coefficient(*, coef: Tensor, kl: Tensor, target: float) -> Tensor:
    """The weight of a KL penalty for the next batch (Schulman et al., 2017, arXiv:1707.06347, section 4): half of it
    where this batch's KL was below target / 1.5, twice of it where above target * 1.5. All 0-dim; a KL that is not
    finite changes nothing."""
    factor = torch.where(kl < target / 1.5, 0.5, torch.where((kl > target * 1.5) & kl.isfinite(), 2.0, 1.0))
    return coef * factor


def proportional_coefficient(*, coef: Tensor, kl: Tensor, target: float, gain: float = 0.1) -> Tensor:
    """The weight of a KL penalty for the next batch (Ziegler et al., 2019, arXiv:1909.08593, section 2.2): it grows by
    gain times how far this batch's KL is above the target, as a share of it and at most a fifth; it falls likewise.
    All 0-dim; a KL that is not finite changes nothing."""
    error = ((kl - target) / target).clamp(-0.2, 0.2)
    return torch.where(kl.isfinite(), coef * (1 + gain * error), coef)
