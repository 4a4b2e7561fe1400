"""How the optimiser's step is made of parameters, gradients and its state, wherever they lie: here torch's optimisers
over what lies on the learner's device; in mixed.py Adam over bfloat16 weights, in offload.py in the host's memory. A
step that is to be skipped leaves all of it as it was, and a GPU need not be waited for to know that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from rollcall.learners.loop.optimizers import OptimizerConfig, allocate_state, build_optimizer

PARAMETERS = "parameters"  # as a checkpoint calls them; an optimiser's state is `optimizer.<its name>`


class Rule(Protocol):
    """An update rule over a few tensors: the flat parameter of a learner, or its pieces."""

    def set_learning_rate(self, learning_rate: float) -> None: ...

    def scale_gradients(self, factor: Tensor) -> None:
        """Before the next step."""

    def step(self, skip: Tensor) -> None:
        """Along the gradients; where `skip`, 0-dim, is 1.0 and not 0.0, all stays as it is to the bit."""

    def names(self) -> Sequence[str]:
        """Of what there is for each of the tensors: `parameters`, `optimizer.exp_avg` and so on."""

    def live(self, name: str) -> Sequence[Tensor]:
        """One per tensor, to be looked at; a count of steps is 0-dim."""

    def read(self, name: str, index: int) -> Tensor:
        """A float32 copy, or what is float32 anyway."""

    def write(self, name: str, index: int, value: Tensor) -> None: ...

    def state_tensors(self) -> dict[str, Tensor]:
        """All that a step changes, live: to be copied, and copied back."""


class TorchRule:
    """A torch optimiser, over float32 tensors on one device."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        decayed: Sequence[Tensor],
        config: OptimizerConfig,
        *,
        learning_rate: float,
    ) -> None:
        """`parameters` have their gradients; `decayed`: those of which weight decay takes its share."""
        self._parameters = parameters
        self._decayed = list(decayed)
        self._weight_decay = config.weight_decay
        self._optimizer = build_optimizer(parameters, config, learning_rate=learning_rate)
        allocate_state(self._optimizer)

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def scale_gradients(self, factor: Tensor) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor)

    @torch.no_grad()
    def step(self, skip: Tensor) -> None:
        (group,) = self._optimizer.param_groups
        if not isinstance(self._optimizer, torch.optim.Adam):
            if not bool(skip):  # a GPU is waited for: these know no other way
                shrink(self._decayed, self._weight_decay * group["lr"])
                self._optimizer.step()
            return
        shrink(self._decayed, self._weight_decay * group["lr"], skip)
        states = [self._optimizer.state[parameter] for parameter in self._parameters]
        adam_step(
            self._parameters,
            [parameter.grad for parameter in self._parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            skip=skip,
        )

    def names(self) -> Sequence[str]:
        return [PARAMETERS, *(f"optimizer.{name}" for name in self._optimizer.state[self._parameters[0]])]

    def live(self, name: str) -> Sequence[Tensor]:
        if name == PARAMETERS:
            return self._parameters
        return [self._optimizer.state[parameter][name.removeprefix("optimizer.")] for parameter in self._parameters]

    def read(self, name: str, index: int) -> Tensor:
        return self.live(name)[index].detach()

    @torch.no_grad()
    def write(self, name: str, index: int, value: Tensor) -> None:
        self.live(name)[index].copy_(value)

    def state_tensors(self) -> dict[str, Tensor]:
        return {f"{name}.{index}": item for name in self.names() for index, item in enumerate(self.live(name))}


def adam_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    skip: Tensor,
) -> None:
    """Torch's fused Adam without its optimiser: of the 0.1 ms that Optimizer.step takes for one small flat parameter,
    nine tenths are its hooks and checks (measured), a seventh of a small network's whole update."""
    torch._foreach_add_(list(steps), 1.0 - skip)
    torch._fused_adam_(
        list(parameters),
        list(gradients),
        list(exp_avgs),
        list(exp_avg_sqs),
        [],
        list(steps),
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
        found_inf=skip,
    )


def shrink(parameters: Sequence[Tensor], share: float, skip: Tensor | None = None) -> None:
    """Decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101): of the weights, not of their gradients,
    so that what Adam makes of a gradient does not scale it."""
    if share:
        kept = torch.full((), 1.0 - share) if skip is None else torch.where(skip > 0, 1.0, 1.0 - share)
        torch._foreach_mul_(list(parameters), kept)


def decays(name: str, parameter: Tensor) -> bool:
    """Weights of matrices and embeddings; not biases, nor the scales of normalisations, which are not many numbers and
    have to be as large as they are."""
    return parameter.dim() >= 2 and "bias" not in name
