"""What the entropy weighs in a soft value: a number that is learnt."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """By its logarithm, so that it stays positive."""

    def __init__(self, value: float, *, learnt: bool) -> None:
        super().__init__()
        self.log_value = nn.Parameter(torch.full((1,), math.log(value)), requires_grad=learnt)

    def forward(self) -> Tensor:
        """0-dim, without gradient."""
        return self.log_value.detach().exp().squeeze(0)
