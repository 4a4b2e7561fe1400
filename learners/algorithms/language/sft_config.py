"""The settings of supervised fine-tuning, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rollcall.learners.declared import Declared, Needs


class SFTConfig(BaseModel):
    """Settings of supervised fine-tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["sft"] = Field(default="sft", description="the algorithm")
    token_budget: int = Field(default=16384, ge=1, description="padded tokens of one forward pass")


DECLARED = Declared(SFTConfig, Needs(), unit="prompt")
