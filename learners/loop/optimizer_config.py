"""The optimisers that a recipe may name, each with its own settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LANGUAGE_EPS = 1e-8  # Adam's own

Eps = Annotated[
    float | None,
    Field(
        gt=0,
        description="epsilon; none: PPO's 1e-5 in control, and 1e-8 for models of language, whose gradients are small: "
        "at 1e-6 a step with 1e-5 is a tenth of what it should be",
    ),
]

WeightDecay = Annotated[
    float,
    Field(
        ge=0,
        allow_inf_nan=False,
        description="share of each weight matrix, times the step size, that a step takes away (AdamW's)",
    ),
]


class AdamConfig(BaseModel):
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980), its average of gradients and of their squares unbiased."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["adam"] = Field(default="adam", description="the update rule")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the average of gradients")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the average of their squares")
    eps: Eps = None
    weight_decay: WeightDecay = 0.0


class AdamWConfig(BaseModel):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["adamw"] = Field(default="adamw", description="the update rule")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the average of gradients")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the average of their squares")
    eps: Eps = None
    weight_decay: WeightDecay = 0.01


class RMSpropConfig(BaseModel):
    """RMSprop (Tieleman and Hinton, 2012)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rmsprop"] = Field(default="rmsprop", description="the update rule")
    form: Literal["torch", "tensorflow"] = Field(
        default="torch",
        description="torch: epsilon beside the root, the average of squares begins at 0; tensorflow: epsilon inside "
        "it, begins at 1, so that first steps are smaller: what A2C's and IMPALA's published epsilons mean",
    )
    decay: float = Field(default=0.99, ge=0, lt=1, description="decay of the average of squares")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="share of the last step that is taken again")
    eps: Eps = None
    weight_decay: WeightDecay = 0.0


class SGDConfig(BaseModel):
    """Plain gradient descent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sgd"] = Field(default="sgd", description="the update rule")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="share of the last step that is taken again")
    weight_decay: WeightDecay = 0.0


OptimizerConfig = AdamConfig | AdamWConfig | RMSpropConfig | SGDConfig


def of_kind(default: str, kinds: Sequence[str]) -> Callable[[object], object]:
    """A section's kind alone stands for the section, and a section without one is of the default kind."""

    def written_out(value: object) -> object:
        if isinstance(value, str):
            if value not in kinds:
                raise ValueError(f"must be {', '.join(map(repr, kinds[:-1]))} or {kinds[-1]!r}")
            return {"kind": value}
        return {"kind": default, **value} if isinstance(value, dict) else value

    return written_out


_KINDS = ("adam", "adamw", "rmsprop", "sgd")

OptimizerSection = Annotated[
    OptimizerConfig,
    Field(discriminator="kind"),
    BeforeValidator(
        of_kind("adam", _KINDS), json_schema_input_type=OptimizerConfig | Literal["adam", "adamw", "rmsprop", "sgd"]
    ),
]
