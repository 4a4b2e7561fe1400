"""What the optimiser steps: a learner's trained parameters, their gradients and the optimiser's state, whole on every
process or (learners/loop/sharded.py) in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import TensorSpec
from rollcall.learners.collective import Collective
from rollcall.learners.loop.optimizers import OptimizerConfig, allocate_state, build_optimizer
from rollcall.learners.models.flat import Whole, flatten_module

FsdpUnits = Callable[[nn.Module], Iterable[nn.Module]]  # the parts of a model that are sharded one by one


class ReplicatedParameters:
    """All of it on every process: one flat parameter, one flat gradient, so that everything is one operation."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        *,
        collective: Collective,
        optimizer: OptimizerConfig,
        learning_rate: float,
    ) -> None:
        module = nn.ModuleDict(dict(models))
        self._flat = flatten_module(module, only_trained=True)
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._decayed = [p for name, p in module.named_parameters() if p.requires_grad and decays(name, p)]
        self._weight_decay = optimizer.weight_decay
        self._collective = collective
        self._optimizer = build_optimizer([self._flat.parameter], optimizer, learning_rate=learning_rate)
        allocate_state(self._optimizer)

    @property
    def device(self) -> torch.device:
        return self._flat.gradient.device

    @property
    def gradient(self) -> Tensor:
        return self._flat.gradient

    def flat(self) -> Tensor:
        return self._flat.parameter

    def places(self) -> Iterable[tuple[nn.Parameter, TensorSpec]]:
        return zip(self._trained, self._flat.specs, strict=True)

    def zero_gradients(self) -> None:
        self._flat.gradient.zero_()

    def sum_gradients(self) -> None:
        self._collective.sum_(self._flat.gradient)

    def gradient_norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self._flat.gradient)
        return norm

    def scale_gradients(self, factor: Tensor) -> None:
        self._flat.gradient.mul_(factor)

    def set_learning_rate(self, learning_rate: float) -> None:
        set_learning_rate(self._optimizer, learning_rate)

    def step(self) -> None:
        """Adam through its functional form: of the 0.1 ms that Optimizer.step takes for one small flat parameter, nine
        tenths are its hooks and checks (measured), a seventh of a small network's whole update."""
        shrink(self._decayed, self._weight_decay, self._optimizer)
        group, parameter = self._optimizer.param_groups[0], self._flat.parameter
        if not isinstance(self._optimizer, torch.optim.Adam):
            self._optimizer.step()
            return
        state = self._optimizer.state[parameter]
        with torch.no_grad():
            adam(
                [parameter],
                [self._flat.gradient],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def tensors(self) -> dict[str, Tensor]:
        state = self._optimizer.state[self._flat.parameter]
        return {"parameters": self._flat.parameter, **{f"optimizer.{name}": value for name, value in state.items()}}

    def state(self) -> dict[str, Array]:
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.tensors().items()}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(torch.from_numpy(np.array(state[name])))

    def whole(self) -> Whole | None:
        return None


def decays(name: str, parameter: Tensor) -> bool:
    """Weights of matrices and embeddings; not biases, nor the scales of normalisations, which are not many numbers and
    have to be as large as they are."""
    return parameter.dim() >= 2 and "bias" not in name


def shrink(parameters: Sequence[Tensor], weight_decay: float, optimizer: torch.optim.Optimizer) -> None:
    """Decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101): of the weights, not of their gradients,
    so that what Adam makes of a gradient does not scale it."""
    if weight_decay:
        with torch.no_grad():
            torch._foreach_mul_(list(parameters), 1.0 - float(optimizer.param_groups[0]["lr"]) * weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
