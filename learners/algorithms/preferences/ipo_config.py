"""The settings of IPO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.learners.algorithms.preferences.direct_preference_config import DirectMethodConfig
from rollcall.learners.declared import Declared, Needs


class IPOConfig(DirectMethodConfig):
    """Settings of IPO."""

    name: Literal["ipo"] = Field(default="ipo", description="the algorithm")
    tau: float = Field(
        default=0.1, gt=0, description="how near to the reference: log-ratios are to differ by 1 / (2 tau)"
    )

    @property
    def reward_scale(self) -> float:
        return self.tau


DECLARED = Declared(IPOConfig, Needs(reference=True), unit="prompt")
