"""GRPO (Shao et al., 2024, arXiv:2402.03300): samples of one prompt are each other's baseline. With DAPO's choices as
defaults (Yu et al., 2025, arXiv:2503.14476: clip-higher, token mean) and Dr. GRPO's as settings (arXiv:2503.20783)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rollcall.learners.algorithms.language.token_algorithm import (
    LMPart,
    PolicyTerms,
    TokenMethod,
    clipped_surrogate,
    group_advantages,
)
from rollcall.learners.algorithms.language.token_settings import (
    ClipHigh,
    ClipLow,
    LossKL,
    NormaliseStd,
    TokenAlgorithmConfig,
)


class GRPOConfig(TokenAlgorithmConfig):
    """Settings of GRPO, DAPO and Dr. GRPO: they differ in nothing else."""

    name: Literal["grpo"] = Field(default="grpo", description="the algorithm")
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.28  # more than clip_low keeps rare tokens alive
    dual_clip: float | None = Field(
        default=None,
        gt=1,
        description="a ratio above it, the advantage negative, pushes no more (arXiv:1912.09729): older data has such",
    )
    normalise_std: NormaliseStd = True
    dynamic_sampling: bool = Field(
        default=False,
        description="groups whose rewards are all equal are dropped, others sampled in their place: every step has "
        "as many groups to learn from; costs samples",
    )
    kl_estimator: LossKL = "k3"


def token_loss(config: GRPOConfig, part: LMPart, terms: PolicyTerms) -> tuple[Tensor, Tensor]:
    return clipped_surrogate(config, part, terms, config.dual_clip)


ALGORITHM = GRPO = TokenMethod(GRPOConfig, group_advantages, token_loss)
