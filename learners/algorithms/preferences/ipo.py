"""IPO (Azar et al., 2023, arXiv:2310.12036): as DPO with a squared loss, which stays near the reference even where a
preference is always answered the same way."""

from __future__ import annotations

from torch import Tensor

from rollcall.learners.algorithms.preferences.direct_preference import DirectMethod
from rollcall.learners.algorithms.preferences.ipo_config import IPOConfig
from rollcall.learners.maths import preference_losses


def pair_losses(config: IPOConfig, differences: Tensor) -> Tensor:
    """(difference of log-ratios - 1 / (2 tau))^2; log-ratios are sums over tokens."""
    return preference_losses.ipo_loss(differences=differences, tau=config.tau)


DIRECT_METHOD = IPO = DirectMethod(IPOConfig, pair_losses)
