"""How a language model is judged, as a recipe has it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

LEAST_STEPS = 50  # of a run that is evaluated on its way, too


class LMEvalConfig(BaseModel):
    """How a language policy is judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_rows: int = Field(default=500, ge=0, le=1_000_000, description="held-out rows that are answered; 0: none")
    every_steps: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default="auto",
        description="learner steps between evaluations during the run; auto: a fifth of the run, if that has at least "
        f"{LEAST_STEPS} steps; null: only at its ends",
    )
    at_start: bool = Field(default=True, description="also before the first learner step, to compare with")
    seed: int = Field(default=0, ge=0, lt=2**63, description="for sampled answers")
    measure: Literal["correct", "reward"] = Field(
        default="correct", description="what the mean is of: answers that are correct, or the task's own reward"
    )
    greedy: bool = Field(default=True, description="the most likely token; false: sampled as in training")

    def steps_between(self, total_steps: int | None) -> int | None:
        """Learner steps between evaluations of a run of so many, where that is known. None: it has none on its way."""
        if self.every_steps != "auto":
            return self.every_steps
        return None if total_steps is None or total_steps < LEAST_STEPS else -(-total_steps // 5)
