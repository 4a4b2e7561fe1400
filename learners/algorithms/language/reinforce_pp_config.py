"""The settings of REINFORCE++, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.learners.algorithms.language.token_settings import ClipHigh, ClipLow, TokenAlgorithmConfig
from rollcall.learners.declared import Declared, Needs
from rollcall.learners.maths.choices import KLEstimator


class ReinforcePPConfig(TokenAlgorithmConfig):
    """Settings of REINFORCE++ and, with group_baseline, of REINFORCE++-baseline."""

    name: Literal["reinforce_pp"] = Field(default="reinforce_pp", description="the algorithm")
    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    group_baseline: bool = Field(
        default=False,
        description="subtract the mean reward of the prompt's samples first, and have the KL in the loss "
        "(REINFORCE++-baseline): for rewards whose level depends on the prompt; needs groups of two or more",
    )
    kl_estimator: KLEstimator = Field(
        default="k1",
        description="of the KL in the reward; k1: unbiased, as in the paper; k2 and k3 are never negative. In the loss "
        "of group_baseline k1 would do nothing: there it stands for the paper's k2",
    )

    @property
    def kl_in_loss(self) -> bool:
        return self.group_baseline

    @property
    def kl_of_loss(self) -> KLEstimator:
        return "k2" if self.kl_estimator == "k1" else self.kl_estimator

    @property
    def min_group_size(self) -> int:
        return 2 if self.group_baseline else 1


DECLARED = Declared(ReinforcePPConfig, Needs(corrects_policy_lag=True), unit="prompt")
