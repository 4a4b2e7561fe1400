"""How the step size changes over a run. Torch's schedulers count their own steps; ours are functions of how much of the
run's experience was consumed (env steps, where a run is so long), so that a run that is resumed, or made longer, goes
on where the new length says, and no scheduler has state to be saved."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rollcall.learners.loop.optimizer_config import of_kind

Warmup = Annotated[int, Field(ge=0, description="learner steps over which the rate rises from zero")]
FinalFraction = Annotated[float, Field(ge=0, le=1, description="what is left of the rate at the run's end")]


class ConstantSchedule(BaseModel):
    """The rate as it is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["constant"] = Field(default="constant", description="the shape")
    warmup_steps: Warmup = 0


class LinearSchedule(BaseModel):
    """In proportion to what is left of the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["linear"] = Field(default="linear", description="the shape")
    warmup_steps: Warmup = 0
    final_fraction: FinalFraction = 0.0


class CosineSchedule(BaseModel):
    """Half a cosine (Loshchilov and Hutter, 2017, arXiv:1608.03983): slow at first and at the end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["cosine"] = Field(default="cosine", description="the shape")
    warmup_steps: Warmup = 0
    final_fraction: FinalFraction = 0.0


ScheduleConfig = ConstantSchedule | LinearSchedule | CosineSchedule
ScheduleSection = Annotated[
    ScheduleConfig,
    Field(discriminator="kind"),
    BeforeValidator(
        of_kind("constant", ("constant", "linear", "cosine")),
        json_schema_input_type=ScheduleConfig | Literal["constant", "linear", "cosine"],
    ),
]


def rate_fraction(schedule: ScheduleConfig, *, step: int, progress: float) -> float:
    """What the rate is multiplied by.

    Args:
      step: learner steps done before.
      progress: share of the run consumed before, in [0, 1].
    """
    fraction = 1.0
    if isinstance(schedule, LinearSchedule):
        fraction = schedule.final_fraction + (1.0 - schedule.final_fraction) * (1.0 - progress)
    elif isinstance(schedule, CosineSchedule):
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
        fraction = schedule.final_fraction + (1.0 - schedule.final_fraction) * share
    if step < schedule.warmup_steps:
        fraction *= (step + 1) / schedule.warmup_steps
    return fraction
