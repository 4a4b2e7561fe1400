"""What a head of action values may be, as a recipe has it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class QConfig(BaseModel):
    """What the policy knows of its actions, and how it explores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dueling: bool = Field(
        default=False, description="the state's value and the actions' advantages apart (Wang et al., 2016)"
    )
    returns: Literal["mean", "categorical", "quantiles"] = Field(
        default="mean",
        description="what is learnt of an action's return: its mean; a histogram (C51, Bellemare et al., 2017); "
        "quantiles (QR-DQN, Dabney et al., 2018)",
    )
    atoms: int = Field(default=51, ge=2, description="bins of the histogram, or quantiles")
    least_return: float = Field(default=-10.0, description="where the histogram begins")
    most_return: float = Field(default=10.0, description="where the histogram ends")
    noisy: bool = Field(default=False, description="explore by noise in the head's weights (Fortunato et al., 2018)")
    noise_std: float = Field(default=0.5, gt=0, description="initial size of that noise, over sqrt(inputs)")
    epsilons: int = Field(
        default=1,
        ge=1,
        le=65536,
        description="how many epsilons there are: env i of the run explores by the (i mod epsilons)-th",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.least_return >= self.most_return:
            raise ValueError(f"least_return={self.least_return} is not below most_return={self.most_return}")
        return self

    @property
    def is_plain(self) -> bool:
        """One linear layer gives the values."""
        return not (self.dueling or self.noisy) and self.returns == "mean"
