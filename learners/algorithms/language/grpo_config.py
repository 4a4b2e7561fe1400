"""The settings of GRPO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.learners.algorithms.language.token_settings import (
    ClipHigh,
    ClipLow,
    LossKL,
    NormaliseStd,
    TokenAlgorithmConfig,
)
from rollcall.learners.declared import Declared, Needs


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


DECLARED = Declared(GRPOConfig, Needs(corrects_policy_lag=True), unit="prompt")
