"""Losses of critics of actions, and of what goes by them, as pure functions over tensors.

`size` is the number of rows of the whole minibatch: losses are sums / size, so that those of its parts add up.
"""

from __future__ import annotations

import torch
from torch import Tensor


def twin_q_loss(*, q_values: Tensor, targets: Tensor, weights: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The sum over critics of mean(w (Q_i - y)^2) / 2 (Haarnoja et al., 2018, arXiv:1812.05905, eq. 5).

    Args:
      q_values: [N, B], of the critics.
      targets, weights: [B], of importance.

    Returns:
      The loss, and the rows' absolute errors [B], of the mean of the critics.
    """
    errors = q_values - targets
    loss = 0.5 * torch.dot(errors.square().sum(0), weights) / size
    return loss, errors.detach().mean(0).abs()


def temperature_loss(*, log_temperature: Tensor, surplus: Tensor) -> Tensor:
    """log alpha * (entropy - target entropy): gradient descent lowers the temperature while there is more entropy than
    wanted. Of log alpha in place of the paper's alpha (eq. 18), as its authors' own code: it stays positive.

    Args:
      surplus: 0-dim, the mean of -log pi(a|s) less the target, or of a discrete policy's entropy.
    """
    return log_temperature * surplus.detach()
