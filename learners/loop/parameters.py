"""What the optimiser steps: a learner's trained parameters, their gradients and the optimiser's state, whole on every
process or (learners/loop/sharded.py) in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import TensorSpec
from rollcall.learners.collective import Collective
from rollcall.learners.loop.footprint import STEP_CHUNK
from rollcall.learners.loop.mixed import MixedAdam
from rollcall.learners.loop.offload import HostRule
from rollcall.learners.loop.optimizers import AdamConfig, AdamWConfig, OptimizerConfig
from rollcall.learners.loop.rules import PARAMETERS, Rule, Stretch, TorchRule, decays, gradient_norm
from rollcall.learners.models.flat import Whole, flatten_module
from rollcall.learners.models.halves import joined

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
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
    ) -> None:
        """`dtype`: of the trained parameters as passes read them; with bfloat16, they are stepped as float32 all the
        same. `offload`: the optimiser lies in the host's memory."""
        module = nn.ModuleDict(dict(models))
        flat = flatten_module(module, only_trained=True, dtype=dtype)
        self._flat = replace(flat, rest=None)
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._trained = [parameter for _, parameter in named]
        self._place_of = {id(parameter): spec for parameter, spec in self.places()}
        self._collective = collective
        decayed = [
            (0, slice(spec.offset, spec.offset + spec.size))
            for (name, parameter), spec in zip(named, self._flat.specs, strict=True)
            if decays(name, parameter)
        ]
        self._rule = make_rule(
            [flat.parameter],
            [] if flat.rest is None else [flat.rest],
            decayed,
            optimizer,
            learning_rate=learning_rate,
            offload=offload,
        )

    @property
    def device(self) -> torch.device:
        return self._flat.gradient.device

    @property
    def _is_mixed(self) -> bool:
        return self._flat.gradient.dtype != torch.float32

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
        return gradient_norm(self._flat.gradient)

    def scale_gradients(self, factor: Tensor) -> None:
        self._rule.scale_gradients(factor)

    def set_learning_rate(self, learning_rate: float) -> None:
        self._rule.set_learning_rate(learning_rate)

    def step(self, skip: Tensor) -> None:
        self._rule.step(skip)

    def tensors(self) -> dict[str, Tensor]:
        return self._rule.state_tensors()

    def state(self) -> dict[str, Array]:
        return {name: self._as_array(name) for name in self._rule.names()}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._rule.live(name)[0].shape) for name in self._rule.names()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        for name in self._rule.names():
            self._rule.write(name, 0, torch.from_numpy(np.array(state[name])))

    @property
    def in_pieces(self) -> bool:
        return False

    def whole(self) -> Whole | None:
        return self._in_full if self._is_mixed else None

    def _as_array(self, name: str) -> Array:
        """float32; of what lies otherwise, a piece after the other is made so."""
        (live,) = self._rule.live(name)
        if live.dim() == 0 or not self._is_mixed:
            return live.detach().cpu().numpy()
        array = np.empty(live.numel(), np.float32)
        for begin in range(0, len(array), STEP_CHUNK):
            part = slice(begin, begin + STEP_CHUNK)
            array[part] = self._rule.read(name, 0, part).cpu().numpy()
        return array

    def _in_full(self, parameter: Tensor) -> Tensor:
        spec = self._place_of.get(id(parameter))
        if spec is None:  # it is not trained
            return parameter.detach()
        return self._rule.read(PARAMETERS, 0, slice(spec.offset, spec.offset + spec.size)).view(spec.shape)


def make_rule(
    parameters: Sequence[nn.Parameter],
    rests: Sequence[Tensor],
    decayed: Sequence[Stretch],
    config: OptimizerConfig,
    *,
    learning_rate: float,
    offload: bool,
) -> Rule:
    """`rests`: the other halves of parameters that are bfloat16; else nothing."""
    if offload:
        halves = zip(parameters, rests, strict=False)
        values = [joined(parameter.detach(), rest) for parameter, rest in halves] if rests else parameters
        return HostRule(parameters, values, decayed, config, learning_rate=learning_rate)
    if not rests:
        return TorchRule(parameters, decayed, config, learning_rate=learning_rate)
    assert isinstance(config, AdamConfig | AdamWConfig), "other rules step float32 alone"
    return MixedAdam(parameters, rests, decayed, config, learning_rate=learning_rate)
