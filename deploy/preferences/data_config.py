"""Which comparisons a run learns from, as a recipe has it."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.deploy.preferences import text_labels
from rollcall.deploy.preferences.synthetic import SyntheticConfig


class PreferenceDataConfig(BaseModel):
    """Where comparisons come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str | None = Field(default=None, description="a preference file, .jsonl or .jsonl.gz")
    eval: str | None = Field(default=None, description="one of held-out comparisons; none: a share of train")
    eval_fraction: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the prompts (of segments: of the pairs) that is held out, where no file is",
    )
    limit: int | None = Field(
        default=None, ge=2, description="comparisons taken of train, in a seeded order; none: all"
    )
    labels: tuple[str, ...] | None = Field(
        default=None,
        description="of texts with labels, for a reward model: all labels, the worst first; none: by what they say",
    )
    pairs_per_text: int = Field(
        default=text_labels.PAIRS_PER_TEXT,
        ge=1,
        le=1000,
        description="of such a file: comparisons of each text with ones of other labels",
    )
    generate: SyntheticConfig | None = Field(
        default=None, description="in place of a file: comparisons made by the run"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.generate is None):
            raise ValueError("one of train=FILE.jsonl and generate is needed")
        if self.generate is not None and self.eval is not None:
            raise ValueError("eval goes with train: what is generated has its own held-out comparisons")
        return self
