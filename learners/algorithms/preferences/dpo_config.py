"""The settings of DPO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.learners.algorithms.preferences.direct_preference_config import DirectMethodConfig
from rollcall.learners.declared import Declared, Needs


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


DECLARED = Declared(DPOConfig, Needs(reference=True), unit="prompt")
