"""A gradient step as one compiled program: loss, backward, clipping, Adam and the finite check, without Python between
them; or all the steps of an epoch. For one process with whole float32 parameters: with a small network most of a step
is otherwise spent between its kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.func import functional_call, grad_and_value

from rollcall.learners.algorithm import Algorithm, Context, Epoch, Loss, Metrics
from rollcall.learners.loop.parameters import WHOLE, ReplicatedParameters
from rollcall.learners.loop.rules import AdamState, TorchRule
from rollcall.learners.update import TrainedParameters

PerSample = tuple[Tensor, ...]  # one, or none
Program = Callable[[Any, Tensor], tuple[Tensor, Tensor, Metrics, PerSample]]  # (part, broken) -> loss, norm and so on
Out = TypeVar("Out")
EpochProgram = Callable[[Any, Tensor], Tensor]  # (epoch, broken) -> the metrics' means, loss and norm at the end


def fused_step(
    algorithm: Algorithm[Any, Any, Any],
    context: Context,
    trained: TrainedParameters,
    *,
    max_grad_norm: float | None,
    backend: str = "inductor",
) -> FusedStep | None:
    """None where gradients are summed over processes, or parameters or their update rule are of another kind."""
    if context.collective.num_processes > 1 or not isinstance(trained, ReplicatedParameters):
        return None
    rules = {name: rule for name, rule in trained.rules.items() if isinstance(rule, TorchRule) and rule.is_adam}
    if len(rules) < len(trained.rules):
        return None
    return FusedStep(algorithm, context, trained, rules, max_grad_norm, backend)


class FusedStep:
    """What Stepper.gradient_step does with one part, compiled when it is first called."""

    def __init__(
        self,
        algorithm: Algorithm[Any, Any, Any],
        context: Context,
        trained: ReplicatedParameters,
        rules: Mapping[str, TorchRule],
        max_grad_norm: float | None,
        backend: str,
    ) -> None:
        self._loss = _LossOf(algorithm, context)
        names = [name for name, parameter in self._loss.named_parameters() if parameter.requires_grad]
        specs = [(spec.offset, spec.size, tuple(spec.shape)) for _, spec in trained.places()]
        self._places = dict(zip(names, specs, strict=True))
        self._flat = trained.flat().detach()
        self._rules = rules
        self._stretches = trained.stretches
        self._rates = {name: torch.zeros((), device=trained.device) for name in rules}
        self._max_grad_norm = max_grad_norm
        self._backend = backend
        self._programs: dict[tuple[str, ...], Program] = {}
        self._epoch_program: tuple[list[str], EpochProgram] | None = None

    @property
    def takes_epochs(self) -> bool:
        """Not on a GPU: a loop in a program waits for it in each turn."""
        return list(self._rules) == [WHOLE] and self._flat.device.type == "cpu"

    def begin(self) -> None:
        """Before a batch: its steps have the learning rates of now."""
        for name, rule in self._rules.items():
            self._rates[name].fill_(rule.learning_rate)

    def __call__(self, part: object, broken: Tensor, models: Collection[str] | None = None) -> tuple[Loss, Tensor]:
        """A step of all models, or of these. Its loss and its gradient's norm are added to `broken`, and where that is
        not finite nothing else changes. Returns the loss, and the norm before clipping."""
        stepped = tuple(name for name in self._rules if models is None or name == WHOLE or name in models)
        program = self._programs.get(stepped)
        if program is None:
            program = self._programs[stepped] = self._compiled(stepped)
        with torch.no_grad():
            loss, norm, metrics, per_sample = program(part, broken)
        return Loss(loss, metrics, *per_sample), norm

    def epoch(self, epoch: Epoch[Any], broken: Tensor) -> Metrics:
        """A step of all models for each of its minibatches. Returns the metrics' means."""
        if self._epoch_program is None:
            with torch.no_grad():
                first = self._loss(epoch.part(torch.zeros((), dtype=torch.int64)))
            if first.per_sample is not None:
                raise ValueError("a loss with per_sample is not for epochs: give the algorithm minibatches of its own")
            names = list(first.metrics)
            self._epoch_program = ([*names, "loss", "grad_norm"], self._compiled_epoch(names))
        names, program = self._epoch_program
        with torch.no_grad():
            means = program(epoch, broken)
        return dict(zip(names, means.unbind(), strict=True))

    def _compiled(self, stepped: tuple[str, ...]) -> Program:
        def program(part: object, broken: Tensor) -> tuple[Tensor, Tensor, Metrics, PerSample]:
            gradient, norm, loss, metrics, per_sample = self._gradient(self._flat, part)
            broken.add_(loss + norm)
            for name in stepped:
                weights, state = self._flat[self._stretches[name]], self._rules[name].adam_state()
                for live, new in zip(
                    (weights, *state), self._stepped(name, weights, state, gradient, norm, broken), strict=True
                ):
                    live.copy_(new)
            return loss, norm, metrics, per_sample

        return self._compile(program)

    def _compiled_epoch(self, names: Sequence[str]) -> EpochProgram:
        def program(epoch: Epoch[Any], broken: Tensor) -> Tensor:
            def more(index: Tensor, *_: Tensor) -> Tensor:
                return index < len(epoch)

            def step(
                index: Tensor, sums: Tensor, broken: Tensor, weights: Tensor, *state: Tensor
            ) -> tuple[Tensor, ...]:
                gradient, norm, loss, metrics, _ = self._gradient(weights, epoch.part(index))
                broken = broken + (loss + norm)
                sums = sums + torch.stack([*(metrics[name] for name in names), loss, norm])
                stepped = self._stepped(WHOLE, weights, AdamState(*state), gradient, norm, broken)
                return index + 1, sums, broken, *stepped

            live = (broken, self._flat, *self._rules[WHOLE].adam_state())
            first = torch.zeros((), dtype=torch.int64)
            before = (first, self._flat.new_zeros(len(names) + 2), *live)
            turned: tuple[Tensor, ...] = while_loop(more, step, before)  # type: ignore[no-untyped-call]  # torch's
            _, sums, *after = turned
            for tensor, new in zip(live, after, strict=True):
                tensor.copy_(new)
            return sums / len(epoch)

        return self._compile(program)

    def _compile(self, program: Callable[..., Out]) -> Callable[..., Out]:
        options: dict[str, Any] = {"guard_filter_fn": _may_change}
        if self._flat.device.type == "cpu" and self._backend == "inductor":
            options["cpp_wrapper"] = True  # what calls the kernels is compiled, too
        compiled: Callable[..., Out] = torch.compile(
            program, backend=self._backend, fullgraph=True, dynamic=False, options=options
        )
        return compiled

    def _gradient(self, weights: Tensor, part: object) -> tuple[Tensor, Tensor, Tensor, Metrics, PerSample]:
        """Of all parameters side by side, its norm, and the loss with what comes with it."""
        parameters = {
            name: weights[offset : offset + size].view(shape) for name, (offset, size, shape) in self._places.items()
        }
        gradients, (loss, (metrics, per_sample)) = grad_and_value(self._loss_at, has_aux=True)(parameters, part)
        gradient = self._side_by_side(gradients, weights)
        return gradient, torch.linalg.vector_norm(gradient), loss, metrics, per_sample

    def _loss_at(self, parameters: dict[str, Tensor], part: object) -> tuple[Tensor, tuple[Metrics, PerSample]]:
        loss, metrics, per_sample = functional_call(self._loss, parameters, (part,))
        return loss, (metrics, () if per_sample is None else (per_sample,))

    def _stepped(
        self, name: str, weights: Tensor, state: AdamState, gradient: Tensor, norm: Tensor, broken: Tensor
    ) -> tuple[Tensor, ...]:
        """What the weights and the state of a rule become."""
        own = gradient[self._stretches[name]]
        if self._max_grad_norm is not None:
            own_norm = norm if name == WHOLE else torch.linalg.vector_norm(own)
            own = own * (self._max_grad_norm / (own_norm + 1e-6)).clamp(max=1.0)
        weights, state = self._rules[name].traced_step(
            weights, state, own, learning_rate=self._rates[name], finite=broken.isfinite()
        )
        return weights, *state

    def _side_by_side(self, gradients: Mapping[str, Tensor], weights: Tensor) -> Tensor:
        """As the flat weights are, with zeros in the gaps between parameters."""
        parts, end = [], 0
        for name, (offset, size, _) in self._places.items():
            parts += [weights.new_zeros(offset - end), gradients[name].reshape(-1)]
            end = offset + size
        return torch.cat([*parts, weights.new_zeros(len(weights) - end)])


def _may_change(guards: Sequence[Any]) -> list[bool]:
    """Which of torch's guards are looked at before every step: those of what a part and an algorithm hold. Nobody
    changes the modules of a run or the code's globals, and to look at those takes a sixth of a small step."""
    return [not (guard.is_global or "_modules[" in guard.name or "__import_" in guard.name) for guard in guards]


class _LossOf(nn.Module):
    """An algorithm's loss as a module over all the models, so that it can be called with other parameters."""

    def __init__(self, algorithm: Algorithm[Any, Any, Any], context: Context) -> None:
        super().__init__()
        self.models = nn.ModuleDict(dict(context.models))
        self._algorithm, self._context = algorithm, context

    def forward(self, part: object) -> Loss:
        return self._algorithm.loss(self._context, part)
