"""The settings of CISPO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.learners.algorithms.language.token_settings import LossKL, NormaliseStd, TokenAlgorithmConfig
from rollcall.learners.declared import Declared, Needs


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


DECLARED = Declared(CISPOConfig, Needs(corrects_policy_lag=True), unit="prompt")
