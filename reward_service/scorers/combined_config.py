"""Settings that scorers made of scorers have in common."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from rollcall.cluster.inputs.strict import Strict

Take = Literal["mean", "min", "lower_bound"]


class Term(Strict):
    """What one score is worth in a sum."""

    weight: float = Field(default=1.0, allow_inf_nan=False, description="the clipped score is multiplied by it")
    at_least: float | None = Field(default=None, allow_inf_nan=False, description="a lower score counts as this")
    at_most: float | None = Field(default=None, allow_inf_nan=False, description="a higher score counts as this")

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least={self.at_least} is above at_most={self.at_most}: give a range")
        return self

    def clipped(self, score: float) -> float:
        if math.isnan(score):
            return score  # min and max would make a number of it
        score = score if self.at_least is None else max(score, self.at_least)
        return score if self.at_most is None else min(score, self.at_most)
