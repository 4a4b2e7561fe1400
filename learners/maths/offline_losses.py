"""Losses of learning from a fixed set, as pure functions over tensors [B]. `size` is the number of rows of the whole
minibatch: losses are sums / size, so that those of its parts add up."""

from __future__ import annotations

import torch
from torch import Tensor


def expectile_loss(*, errors: Tensor, expectile: float, size: int) -> Tensor:
    """mean(|expectile - 1(u < 0)| u^2) of u = Q - V (Kostrikov et al., 2021, arXiv:2110.06169, eq. 5). The V that
    minimises it is that expectile of the Qs: 0.5 the mean, towards 1 the largest that the set shows.

    Raises:
      ValueError: when the expectile is not within (0, 1).
    """
    if not 0.0 < expectile < 1.0:
        raise ValueError(f"expectile={expectile}: must be between 0 and 1")
    weights = torch.where(errors < 0, 1.0 - expectile, expectile)
    return (weights * errors.square()).sum() / size


def advantage_weights(*, advantages: Tensor, inverse_temperature: float, largest: float) -> Tensor:
    """exp(inverse_temperature * A), `largest` at the most, without gradient: how much an action of the set is imitated
    (Peng et al., 2019, arXiv:1910.00177)."""
    # The exponent is cut and not the power, which may be infinite.
    bound = torch.tensor(largest, dtype=advantages.dtype, device=advantages.device).log()
    return (inverse_temperature * advantages.detach()).minimum(bound).exp()
