"""The settings of GSPO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.learners.algorithms.language.token_settings import LossKL, NormaliseStd, TokenAlgorithmConfig
from rollcall.learners.declared import Declared, Needs
from rollcall.learners.maths.choices import Aggregation


class GSPOConfig(TokenAlgorithmConfig):
    """Settings of GSPO. The clip is of a mean over many tokens, so it is hundreds of times narrower than GRPO's."""

    name: Literal["gspo"] = Field(default="gspo", description="the algorithm")
    clip_low: float = Field(
        default=3e-4, gt=0, le=1, description="how far a sequence's ratio may fall below 1 with a gradient"
    )
    clip_high: float = Field(
        default=4e-4, gt=0, description="how far it may rise above 1: a little more, so that rare sequences stay alive"
    )
    aggregation: Aggregation = Field(
        default="sequence_mean", description="sequence_mean, as in the paper: the unit of the loss is the sequence"
    )
    normalise_std: NormaliseStd = True
    kl_estimator: LossKL = "k3"


DECLARED = Declared(GSPOConfig, Needs(corrects_policy_lag=True), unit="prompt")
