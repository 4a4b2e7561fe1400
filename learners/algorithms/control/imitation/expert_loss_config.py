"""Settings that algorithms which imitate have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

LossName = Annotated[
    Literal["nll", "mse"],
    Field(
        description="nll: maximum likelihood, of continuous actions with the standard deviation learnt too; mse: the "
        "squared distance of the likeliest continuous action, which leaves the deviation at policy.log_std_init"
    ),
]

EntropyCoef = Annotated[
    float, Field(ge=0, description="weight of an entropy bonus: keeps a clone from being sure where it saw little")
]
