"""CISPO (MiniMax-M1, 2025, arXiv:2506.13585): REINFORCE with group-relative advantages and a clipped importance weight.
No token loses its gradient: those that a clipped surrogate drops first are the rare ones that turn an argument."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rollcall.learners.algorithms.language.token_algorithm import LMPart, PolicyTerms, TokenMethod, group_advantages
from rollcall.learners.algorithms.language.token_settings import LossKL, NormaliseStd, TokenAlgorithmConfig
from rollcall.learners.maths import token_losses


class CISPOConfig(TokenAlgorithmConfig):
    """Settings of CISPO."""

    name: Literal["cispo"] = Field(default="cispo", description="the algorithm")
    clip_low: float = Field(
        default=1.0, gt=0, le=1, description="the weight is at least 1 - clip_low; 1: no lower bound"
    )
    clip_high: float = Field(
        default=2.0, gt=0, description="the weight is at most 1 + clip_high: bounds the variance of older experience"
    )
    normalise_std: NormaliseStd = True
    kl_estimator: LossKL = "k3"


def token_loss(config: CISPOConfig, part: LMPart, terms: PolicyTerms) -> tuple[Tensor, Tensor]:
    return token_losses.cispo_loss(
        logprobs=terms.logprobs,
        anchor_logprobs=terms.anchor_logprobs,
        advantages=part.targets.advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
    )


ALGORITHM = CISPO = TokenMethod(CISPOConfig, group_advantages, token_loss)
