"""IPO (Azar et al., 2023, arXiv:2310.12036): as DPO with a squared loss, which stays near the reference even where a
preference is always answered the same way."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rollcall.learners.algorithms.preferences.direct_preference import DirectMethod, DirectMethodConfig
from rollcall.learners.maths import preference_losses


class IPOConfig(DirectMethodConfig):
    """Settings of IPO."""

    name: Literal["ipo"] = Field(default="ipo", description="the algorithm")
    tau: float = Field(
        default=0.1, gt=0, description="how near to the reference: log-ratios are to differ by 1 / (2 tau)"
    )

    @property
    def reward_scale(self) -> float:
        return self.tau


def pair_losses(config: IPOConfig, differences: Tensor) -> Tensor:
    """(difference of log-ratios - 1 / (2 tau))^2; log-ratios are sums over tokens."""
    return preference_losses.ipo_loss(differences=differences, tau=config.tau)


DIRECT_METHOD = IPO = DirectMethod(IPOConfig, pair_losses)
