"""The optimisers that a recipe may name, each with its own settings, and how torch's are made from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rollcall.learners.loop.optimizer_config import (
    RMSpropConfig,
    SGDConfig,
)

CONTROL_EPS = 1e-5  # PPO's (Huang et al., 2022, "The 37 implementation details")


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
