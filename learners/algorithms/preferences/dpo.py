"""DPO (Rafailov et al., 2023, arXiv:2305.18290): a policy from comparisons, without a reward model or sampling."""

from __future__ import annotations

from torch import Tensor

from rollcall.learners.algorithms.preferences.direct_preference import DirectMethod
from rollcall.learners.algorithms.preferences.dpo_config import DPOConfig
from rollcall.learners.maths import preference_losses


def pair_losses(config: DPOConfig, differences: Tensor) -> Tensor:
    """-log sigmoid(beta * difference of log-ratios)."""
    return preference_losses.dpo_loss(differences=differences, beta=config.beta, label_smoothing=config.label_smoothing)


DIRECT_METHOD = DPO = DirectMethod(DPOConfig, pair_losses)
