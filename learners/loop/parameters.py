"""What the optimiser steps: a learner's trained parameters, their gradients and the optimiser's state, whole on every
process or (learners/loop/sharded.py) in pieces."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import TensorSpec
from rollcall.learners.collective import Collective
from rollcall.learners.loop.footprint import STEP_CHUNK
from rollcall.learners.loop.mixed import MixedAdam
from rollcall.learners.loop.offload import HostRule
from rollcall.learners.loop.optimizer_config import AdamConfig, AdamWConfig, OptimizerConfig
from rollcall.learners.loop.rules import PARAMETERS, Rule, Stretch, TorchRule, decays, gradient_norm
from rollcall.learners.models.flat import FlatParameters, Whole, flatten_module
from rollcall.learners.models.halves import joined

WHOLE = ""  # of rules: the one over all models
FsdpUnits = Callable[[nn.Module], Iterable[nn.Module]]  # the parts of a model that are sharded one by one


class ReplicatedParameters:
    """All of it on every process: one flat parameter, one flat gradient, so that everything is one operation; unless
    the models are stepped apart, each by a rule of its own over its stretch of both."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        *,
        collective: Collective,
        optimizer: OptimizerConfig,
        learning_rate: float,
        apart: Mapping[str, float] | None = None,
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
    ) -> None:
        """`apart`: the learning rates of the models by name, of all that are trained, where they are stepped apart.
        `dtype`: of the trained parameters as passes read them; with bfloat16, they are stepped as float32 all the same.
        `offload`: the optimiser lies in the host's memory."""
        module = nn.ModuleDict(dict(models))
        flat = flatten_module(module, only_trained=True, dtype=dtype)
        self._flat = replace(flat, rest=None)
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._trained = [parameter for _, parameter in named]
        self._place_of = {id(parameter): spec for parameter, spec in self.places()}
        self._collective = collective
        decayed = [
            slice(spec.offset, spec.offset + spec.size)
            for (name, parameter), spec in zip(named, self._flat.specs, strict=True)
            if decays(name, parameter)
        ]
        settings: dict[str, Any] = {"config": optimizer, "offload": offload}
        if apart is None:
            rests = [] if flat.rest is None else [flat.rest]
            stretches = [(0, stretch) for stretch in decayed]
            self._rates = {WHOLE: learning_rate}
            self._rules = {
                WHOLE: make_rule([flat.parameter], rests, stretches, learning_rate=learning_rate, **settings)
            }
            self._stretches = {WHOLE: slice(0, len(flat.gradient))}
            self._gradients = {WHOLE: self._flat.gradient}
            return
        if flat.rest is not None or offload:
            raise ValueError(
                "learner.offload_optimizer: models that are stepped apart stay where they are: set it to false"
            )
        self._rates, self._rules, self._gradients = dict(apart), {}, {}
        self._stretches = _stretches(models, self._flat)
        for name, stretch in self._stretches.items():
            part = nn.Parameter(self._flat.parameter.detach()[stretch])
            part.grad = self._gradients[name] = self._flat.gradient[stretch]
            begin, end = stretch.start, stretch.stop
            own = [(0, slice(s.start - begin, s.stop - begin)) for s in decayed if begin <= s.start < end]
            self._rules[name] = make_rule([part], [], own, learning_rate=apart[name], **settings)

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

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The one of all models, WHOLE, or of each model that is stepped apart its own."""
        return self._rules

    @property
    def stretches(self) -> Mapping[str, slice]:
        """Where the parameters of each rule lie in `flat`."""
        return self._stretches

    def zero_gradients(self) -> None:
        self._flat.gradient.zero_()

    def sum_gradients(self, loss: Tensor) -> None:
        self._flat.gradient[:1].add_(loss * 0.0)
        self._collective.sum_(self._flat.gradient)

    def gradient_norm(self) -> Tensor:
        return gradient_norm(self._flat.gradient)

    def clip_gradients(self, max_norm: float, norm: Tensor) -> None:
        for name, rule in self._rules.items():
            own = norm if name == WHOLE else gradient_norm(self._gradients[name])
            rule.scale_gradients((max_norm / (own + 1e-6)).clamp(max=1.0))

    def scale_learning_rates(self, share: float) -> None:
        for name, rule in self._rules.items():
            rule.set_learning_rate(self._rates[name] * share)

    def step(self, skip: Tensor, models: Collection[str] | None = None) -> None:
        for name, rule in self._rules.items():
            if models is None or name in models:
                rule.step(skip)

    def tensors(self) -> dict[str, Tensor]:
        return {
            name if model == WHOLE else f"{name}.{model}": tensor
            for model, rule in self._rules.items()
            for name, tensor in rule.state_tensors().items()
        }

    def state(self) -> dict[str, Array]:
        return {saved: self._as_array(rule, name) for saved, rule, name in self._saved()}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {saved: tuple(rule.live(name)[0].shape) for saved, rule, name in self._saved()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        for saved, rule, name in self._saved():
            rule.write(name, 0, torch.from_numpy(np.array(state[saved])))

    def _saved(self) -> Iterator[tuple[str, Rule, str]]:
        """(a checkpoint's name, whose state it is, that rule's name): `optimizer.exp_avg`, or of a model that is
        stepped apart `optimizer.exp_avg.critic`."""
        for model, rule in self._rules.items():
            for name in rule.names():
                yield name if model == WHOLE else f"{name}.{model}", rule, name

    @property
    def in_pieces(self) -> bool:
        return False

    def whole(self) -> Whole | None:
        return self._in_full if self._is_mixed else None

    def _as_array(self, rule: Rule, name: str) -> Array:
        """float32; of what lies otherwise, a piece after the other is made so."""
        (live,) = rule.live(name)
        if live.dim() == 0 or not self._is_mixed:
            return live.detach().cpu().numpy()
        array = np.empty(live.numel(), np.float32)
        for begin in range(0, len(array), STEP_CHUNK):
            part = slice(begin, begin + STEP_CHUNK)
            array[part] = rule.read(name, 0, part).cpu().numpy()
        return array

    def _in_full(self, parameter: Tensor) -> Tensor:
        spec = self._place_of.get(id(parameter))
        if spec is None:  # it is not trained
            return parameter.detach()
        return self._rules[WHOLE].read(PARAMETERS, 0, slice(spec.offset, spec.offset + spec.size)).view(spec.shape)


def _stretches(models: Mapping[str, nn.Module], flat: FlatParameters) -> dict[str, slice]:
    """Of each model with trained parameters: where they lie, side by side, gaps included."""
    owners = [name for name, model in models.items() for p in model.parameters() if p.requires_grad]
    begins: dict[str, int] = {}
    for name, spec in zip(owners, flat.specs, strict=True):
        begins.setdefault(name, spec.offset)
    ends = [*list(begins.values())[1:], len(flat.gradient)]
    return {name: slice(begin, end) for (name, begin), end in zip(begins.items(), ends, strict=True)}


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
