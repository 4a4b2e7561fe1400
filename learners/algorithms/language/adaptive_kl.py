"""An adaptive weight of the KL to the reference (Ziegler et al., 2019, arXiv:1909.08593): what one batch makes of it
counts for the next, so a checkpoint keeps it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rollcall.learners.algorithm import Context, Models
from rollcall.learners.algorithms.language.token_settings import KLGoal
from rollcall.learners.maths.trust_region import proportional_coefficient

NAME = "kl_coefficient"  # of the learner's models


class AdaptiveKL(nn.Module):
    """The weight, as a buffer."""

    value: Tensor

    def __init__(self, first: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(first))


def models(first: float) -> Models:
    return {NAME: AdaptiveKL(first)}


def next_coefficient(context: Context, *, kl: Tensor, goal: KLGoal) -> Tensor:
    """The weight for a batch of this KL, before it is adapted to it; noted as kl_coef."""
    adaptive = context.models[NAME]
    assert isinstance(adaptive, AdaptiveKL)
    before = adaptive.value.clone()
    context.noted["kl_coef"] = before
    adaptive.value.copy_(proportional_coefficient(coef=before, kl=kl, target=goal.kl, gain=goal.gain))
    return before
