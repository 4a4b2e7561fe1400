"""The settings of selection: which completions of a prompt are kept."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class KeepConfig(BaseModel):
    """Best-of-n (`best`), rejection sampling by a threshold (`at_least`), or both. A completion that was cut at
    max_tokens, an empty one and one that was kept already are never kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    best: int | None = Field(
        default=1, ge=1, description="completions of one prompt at the most, by their score; none: all that pass"
    )
    at_least: float | None = Field(
        default=None, allow_inf_nan=False, description="the score that a completion needs to be kept; none: any"
    )

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if self.best is None and self.at_least is None:
            raise ValueError("best and at_least are both none: everything would be kept: give one of them")
        return self
