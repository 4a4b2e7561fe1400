"""The settings of KTO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.learners.algorithms.preferences.direct_preference_config import DirectMethodConfig
from rollcall.learners.declared import Declared, Needs


class KTOConfig(DirectMethodConfig):
    """Settings of KTO."""

    name: Literal["kto"] = Field(default="kto", description="the algorithm")
    beta: float = Field(default=0.1, gt=0, description="how fast gains and losses saturate: larger is nearer")
    desirable_weight: float = Field(default=1.0, gt=0, description="of desirable rows in the loss")
    undesirable_weight: float = Field(
        default=1.0,
        gt=0,
        description="of undesirable ones; the paper keeps (desirable_weight * number of desirable rows) / "
        "(undesirable_weight * number of undesirable ones) between 1 and 4/3",
    )

    @property
    def reward_scale(self) -> float:
        return self.beta


DECLARED = Declared(KTOConfig, Needs(reference=True), unit="prompt")
