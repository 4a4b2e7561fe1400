"""The optimisers that a recipe may name, each with its own settings, and how torch's are made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor, nn

CONTROL_EPS = 1e-5  # PPO's (Huang et al., 2022, "The 37 implementation details")
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


def build_optimizer(
    parameters: Sequence[nn.Parameter], config: RMSpropConfig | SGDConfig, *, learning_rate: float
) -> torch.optim.Optimizer:
    """Weight decay is not its part: that is of matrices alone, which flat parameters do not show. Adam needs none: see
    rules.py."""
    if isinstance(config, SGDConfig):
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=config.momentum)
    eps = CONTROL_EPS if config.eps is None else config.eps
    rule = TensorFlowRMSprop if config.form == "tensorflow" else torch.optim.RMSprop
    return rule(parameters, lr=learning_rate, alpha=config.decay, eps=eps, momentum=config.momentum)


class TensorFlowRMSprop(torch.optim.Optimizer):
    """RMSprop as in TensorFlow 1: s <- alpha * s + (1 - alpha) * g^2, which begins at 1; m <- momentum * m + lr * g /
    sqrt(s + eps); the parameters less m."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, alpha: float, eps: float, momentum: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                if not state:
                    state["square_avg"] = torch.ones_like(parameter)
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["square_avg"].mul_(group["alpha"]).addcmul_(gradient, gradient, value=1.0 - group["alpha"])
                step: Tensor = gradient / (state["square_avg"] + group["eps"]).sqrt()
                state["momentum_buffer"].mul_(group["momentum"]).add_(step, alpha=group["lr"])
                parameter.sub_(state["momentum_buffer"])


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Makes the optimiser's state before its first step, so that the first checkpoint has the layout of all others: by
    a step of size zero with a zero gradient."""
    with torch.no_grad():
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
            for parameter in group["params"]:
                for name, tensor in optimizer.state[parameter].items():
                    first = name == "square_avg" and isinstance(optimizer, TensorFlowRMSprop)
                    tensor.fill_(1.0 if first else 0.0)
                assert bool(parameter.isfinite().all())
