"""What the optimiser steps: a learner's trained parameters, their gradients and the optimiser's state, whole on every
process or (learners/loop/sharded.py) in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import TensorSpec
from rollcall.learners.collective import Collective
from rollcall.learners.loop.optimizers import OptimizerConfig
from rollcall.learners.loop.rules import TorchRule, decays
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
        decayed = [p for name, p in module.named_parameters() if p.requires_grad and decays(name, p)]
        self._collective = collective
        self._rule = TorchRule([self._flat.parameter], decayed, optimizer, learning_rate=learning_rate)

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

    def sum_gradients(self, loss: Tensor) -> None:
        self._flat.gradient[:1].add_(loss * 0.0)
        self._collective.sum_(self._flat.gradient)

    def gradient_norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self._flat.gradient)
        return norm

    def scale_gradients(self, factor: Tensor) -> None:
        self._rule.scale_gradients(factor)

    def set_learning_rate(self, learning_rate: float) -> None:
        self._rule.set_learning_rate(learning_rate)

    def step(self, skip: Tensor) -> None:
        self._rule.step(skip)

    def tensors(self) -> dict[str, Tensor]:
        return self._rule.state_tensors()

    def state(self) -> dict[str, Array]:
        return {name: self._rule.read(name, 0).cpu().numpy() for name in self._rule.names()}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._rule.live(name)[0].shape) for name in self._rule.names()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        for name in self._rule.names():
            self._rule.write(name, 0, torch.from_numpy(np.array(state[name])))

    @property
    def in_pieces(self) -> bool:
        return False

    def whole(self) -> Whole | None:
        return None
