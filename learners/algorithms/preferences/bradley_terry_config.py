"""The settings of the Bradley-Terry loss, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.learners.declared import Declared, Needs


class BradleyTerryConfig(BaseModel):
    """How a reward model's loss is made of comparisons."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["bradley_terry"] = Field(default="bradley_terry", description="the algorithm")
    noise: float = Field(
        default=0.0, ge=0, lt=1, description="share of answers that are random, whatever is compared; 0.1 for people"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="share of labels that are wrong")
    use_margins: bool = Field(
        default=True, description="a comparison's margin is what the rewards must differ by (where it has one)"
    )
    ties: Literal["half", "rao_kupper"] = Field(
        default="half", description="half: a tie is half a vote for either; rao_kupper: an outcome of its own"
    )
    tie_threshold: float = Field(default=0.5, gt=0, description="of rao_kupper: the difference that raters do not see")
    budget: int = Field(default=16384, ge=1, description="padded tokens (or steps) of one forward pass")

    @model_validator(mode="after")
    def _one_model_of_errors(self) -> BradleyTerryConfig:
        if self.ties == "rao_kupper" and (self.noise or self.label_smoothing):
            raise ValueError("ties=rao_kupper is its own model of a rater's errors: set noise and label_smoothing to 0")
        return self


DECLARED = Declared(BradleyTerryConfig, Needs(), unit="prompt")
