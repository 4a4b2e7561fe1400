"""DPO (Rafailov et al., 2023, arXiv:2305.18290): a policy from comparisons, without a reward model or sampling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rollcall.learners.algorithms.preferences.direct_preference import DirectMethod, DirectMethodConfig
from rollcall.learners.maths import preference_losses


class DPOConfig(DirectMethodConfig):
    """Settings of DPO."""

    name: Literal["dpo"] = Field(default="dpo", description="the algorithm")
    beta: float = Field(default=0.1, gt=0, description="how near to the reference: larger is nearer")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of labels that are wrong (conservative DPO); 0: none"
    )

    @property
    def reward_scale(self) -> float:
        return self.beta


def pair_losses(config: DPOConfig, differences: Tensor) -> Tensor:
    """-log sigmoid(beta * difference of log-ratios)."""
    return preference_losses.dpo_loss(differences=differences, beta=config.beta, label_smoothing=config.label_smoothing)


DIRECT_METHOD = DPO = DirectMethod(DPOConfig, pair_losses)
