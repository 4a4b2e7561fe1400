"""Settings that algorithms which learn from kept experience have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

TargetRate = Annotated[
    float, Field(gt=0, le=1, description="share of the way that target networks go after each step (tau)")
]

ModelRate = Annotated[
    float | None,
    Field(gt=0, description="step size of this model's optimiser (None: learner.learning_rate, the actor's)"),
]
