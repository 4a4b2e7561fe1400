"""The settings of group-robust DPO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.learners.algorithms.preferences.direct_preference_config import DirectMethodConfig
from rollcall.learners.declared import Declared, Needs


class GroupDPOConfig(DirectMethodConfig):
    """Settings of group-robust DPO and IPO."""

    name: Literal["group_dpo"] = Field(default="group_dpo", description="the algorithm")
    base: Literal["dpo", "ipo"] = Field(default="dpo", description="the loss whose worst group's mean is minimised")
    beta: float = Field(default=0.1, gt=0, description="of DPO's loss, or tau of IPO's")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="of DPO's loss: share of labels that are wrong"
    )
    draw: Literal["evenly", "by_size"] = Field(
        default="evenly",
        description="evenly: groups in turn, so that a small group's comparisons come again sooner; by_size: each once "
        "a pass; the loss corrects for either",
    )
    group_step: float = Field(
        default=0.05, ge=0, description="step size of the group weights; 0: every group weighs the same for good"
    )

    @property
    def reward_scale(self) -> float:
        return self.beta


DECLARED = Declared(GroupDPOConfig, Needs(reference=True), unit="prompt")
