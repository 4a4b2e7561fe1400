"""The settings of RLOO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.learners.algorithms.language.token_settings import ClipHigh, ClipLow, RewardKL, TokenAlgorithmConfig
from rollcall.learners.declared import Declared, Needs


class RLOOConfig(TokenAlgorithmConfig):
    """Settings of RLOO. A token mean is the paper's sum over tokens, up to a constant of the batch."""

    name: Literal["rloo"] = Field(default="rloo", description="the algorithm")
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    kl_estimator: RewardKL = "k1"

    @property
    def kl_in_loss(self) -> bool:
        return False


DECLARED = Declared(RLOOConfig, Needs(corrects_policy_lag=True), unit="prompt")
