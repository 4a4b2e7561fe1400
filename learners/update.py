"""How a batch's updates are made. An algorithm that needs more than an optimiser step per minibatch (a natural gradient
with a line search, gradients that come from elsewhere) has an `update` of its own, over the same small stepper."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import TensorSpec
from rollcall.learners.algorithm import (
    Algorithm,
    Context,
    Epoch,
    FollowsSteps,
    Loss,
    Metrics,
    Minibatch,
    StopsEarly,
    in_epochs,
)
from rollcall.learners.models.flat import Whole

LossFunction = Callable[[Context, Any], Loss]


class WholeStep(Protocol):
    """A gradient step over one part in one call, as learners/loop/fused_step.py compiles it."""

    def begin(self) -> None: ...

    def __call__(self, part: object, broken: Tensor, models: Collection[str] | None = None) -> tuple[Loss, Tensor]: ...

    @property
    def takes_epochs(self) -> bool:
        """Whether all the steps of an epoch can be made in one call, too."""

    def epoch(self, epoch: Epoch[Any], broken: Tensor) -> Metrics:
        """The means over its minibatches: as `Stepper.gradient_step` has them of each."""


Prepared = TypeVar("Prepared", contravariant=True)


@runtime_checkable
class UpdatesItself(Protocol[Prepared]):
    """An algorithm with an update of its own."""

    def update(self, context: Context, prepared: Prepared, stepper: Stepper) -> Metrics:
        """All that is learnt from one batch. Returns what is to be reported, of all processes together."""


class TrainedParameters(Protocol):
    """The trained parameters of all models of a learner, as one."""

    @property
    def device(self) -> torch.device: ...

    @property
    def gradient(self) -> Tensor:
        """[P]: what backward has added up, side by side; live. Of this process's pieces, where there are pieces."""

    def flat(self) -> Tensor:
        """[P]: the parameters themselves side by side; live. Raises ValueError where each process has a piece."""

    def places(self) -> Iterable[tuple[nn.Parameter, TensorSpec]]:
        """Each parameter, and where it lies in `flat`."""

    def zero_gradients(self) -> None: ...

    def sum_gradients(self, loss: Tensor) -> None:
        """Adds the processes' gradients up, if backward has not. `loss`: this process's, 0-dim; where it is not finite,
        neither is the gradients' norm afterwards, on any process."""

    def gradient_norm(self) -> Tensor:
        """Of all parameters together, 0-dim."""

    def clip_gradients(self, max_norm: float, norm: Tensor) -> None:
        """To that norm at most, of all parameters together (`norm`, 0-dim), or of each model that is stepped apart."""

    def scale_learning_rates(self, share: float) -> None:
        """The rates of steps from now on, as a share of those that the run began with."""

    def step(self, skip: Tensor, models: Collection[str] | None = None) -> None:
        """Before it, the share weight_decay * learning rate is taken away from every weight that `decays`. Where
        `skip`, 0-dim, is 1.0 and not 0.0, all stays as it is to the bit. `models`: of those that are stepped apart,
        these alone; None: all."""

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and optimiser state as this process holds them: live, to be read or copied into."""

    def state(self) -> dict[str, Array]:
        """The same as wholes, for a checkpoint that does not depend on how many processes there are. Every process
        calls; process 0 gets it, the others may get nothing."""

    def state_shapes(self) -> dict[str, tuple[int, ...]]: ...

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Takes up what `state` gave; names and shapes are known to fit."""

    @property
    def in_pieces(self) -> bool:
        """Whether each process holds a part of every parameter."""

    def whole(self) -> Whole | None:
        """How a parameter is read that does not lie here as one float32 tensor: in pieces by all processes together,
        which read the same parameters in the same order. None where all lie so."""


class Stepper:
    """Gradients of the trained parameters, and steps. With several learner processes all of them call it alike; losses,
    metrics and gradients are those of the whole minibatch, of all parts and processes."""

    def __init__(
        self,
        algorithm: Algorithm[Any, Any, Any],
        context: Context,
        trained: TrainedParameters,
        *,
        loss: LossFunction | None = None,
        whole_step: WholeStep | None = None,
        max_grad_norm: float | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`loss`: the algorithm's, compiled, say. `whole_step`: what makes the gradient step of a minibatch of one
        part, clipped to the same norm. `check` is called between passes, and ends the update by raising."""
        self._context = context
        self._trained = trained
        self._loss = loss or algorithm.loss
        self._whole_step = whole_step
        self._after_step = algorithm.after_step if isinstance(algorithm, FollowsSteps) else None
        self._max_grad_norm = max_grad_norm
        self._check = check
        self.begin()

    def begin(self) -> None:
        """Before a batch."""
        # NaN or infinity in any loss, gradient or written parameter reaches this sum, of all processes alike. From then
        # on no step changes anything; the sum itself is looked at once, after the batch: each look would stall a GPU.
        self.broken = torch.zeros((), device=self._trained.device)
        self.num_steps = 0
        self.per_sample: Tensor | None = None  # of this process's parts
        self._epoch_ended = False
        if self._whole_step is not None:
            self._whole_step.begin()

    def loss_and_gradient(self, minibatch: Minibatch[Any], loss: LossFunction | None = None) -> Loss:
        """Computes the gradient anew: of the algorithm's loss, or of another one of the same form (a Fisher-vector
        product is the gradient of such a one)."""
        share = self._backward(self._parts(minibatch), loss or self._loss)
        self._trained.sum_gradients(share.loss)
        found = self._summed(share)
        self.broken.add_(found.loss)
        if loss is None:
            self._keep(found.per_sample, minibatch)
        return found

    @torch.no_grad()
    def loss(self, minibatch: Minibatch[Any], loss: LossFunction | None = None) -> Loss:
        """Without gradient: how good the parameters are that a line search tries."""
        return self._summed(self._add_up(self._parts(minibatch), loss or self._loss, lambda part: part))

    def step(self, models: Collection[str] | None = None) -> Tensor:
        """One optimiser step along the gradient, clipped: of all models, or of these alone where they are stepped
        apart. Returns the gradient's norm before that."""
        norm = self._trained.gradient_norm()
        self.broken.add_(norm)
        if self._max_grad_norm is not None:
            self._trained.clip_gradients(self._max_grad_norm, norm)
        self._trained.step(self._broke(), models)
        self._stepped()
        return norm

    def gradient_step(self, minibatch: Minibatch[Any], models: Collection[str] | None = None) -> Metrics:
        """Both in one, for a minibatch after the other; `models` as `step`'s. The metrics are this process's share, but
        for the last, the gradient's norm: they are summed up over processes once an epoch."""
        parts = self._parts(minibatch)
        if self._whole_step is not None:
            first, *others = parts = list(parts)
            if not others:
                self._check()
                (loss, metrics, per_sample), norm = self._whole_step(first, self.broken, models)
                self._keep(per_sample, minibatch)
                self._stepped()
                return {**metrics, "loss": loss, "grad_norm": norm}
        loss, metrics, per_sample = self._backward(parts, self._loss)
        self._trained.sum_gradients(loss)
        self._keep(per_sample, minibatch)
        return {**metrics, "loss": loss, "grad_norm": self.step(models)}

    @property
    def takes_epochs(self) -> bool:
        return self._whole_step is not None and self._whole_step.takes_epochs and self._after_step is None

    def epoch_steps(self, epoch: Epoch[Any]) -> Metrics:
        """A gradient step for each of its minibatches in one call, where it `takes_epochs`. Returns the metrics' means.
        It is not interrupted in between."""
        assert self._whole_step is not None
        self._check()
        self.num_steps += len(epoch)
        return self._whole_step.epoch(epoch, self.broken)

    def apply_gradient(self, gradient: Tensor) -> Tensor:
        """[P]: a step along what others have computed, the same on every process. Returns as `step`."""
        self.gradient.copy_(gradient)
        return self.step()

    @property
    def gradient(self) -> Tensor:
        """[P]: the last computed one, all parameters' side by side; live."""
        return self._trained.gradient

    def add_gradient(self, gradient: Tensor) -> None:
        """[P]: what the next step is to go along besides."""
        self.gradient.add_(gradient)

    @property
    def parameters(self) -> Tensor:
        """[P]: a copy of the trained parameters side by side.

        Raises:
          ValueError: where each process holds a part of them.
        """
        return self._trained.flat().detach().clone()

    @torch.no_grad()
    def write(self, parameters: Tensor) -> None:
        """[P]: in place of an optimiser step."""
        self.broken.add_(parameters.sum() * 0.0)
        flat = self._trained.flat()
        flat.copy_(torch.where(self._broke() > 0, flat, parameters))
        self._stepped()

    def views(self, vector: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """Each trained parameter with its place in a vector [P], in the parameter's shape."""
        return [
            (parameter, vector[spec.offset : spec.offset + spec.size].view(spec.shape))
            for parameter, spec in self._trained.places()
        ]

    def _parts(self, minibatch: Minibatch[Any]) -> Iterable[Any]:
        """This process's; each may be made when it is asked for."""
        collective = self._context.collective
        return minibatch.shards(collective.rank, collective.num_processes)

    def _backward(self, parts: Iterable[Any], loss: LossFunction) -> Loss:
        self._trained.zero_gradients()

        def backward(part: Loss) -> Loss:
            torch.autograd.backward(part.loss)
            return part

        return self._add_up(parts, loss, backward)

    def _add_up(self, parts: Iterable[Any], loss: LossFunction, each: Callable[[Loss], Loss]) -> Loss:
        """Of parts one after the other: memory holds the graph of one."""
        total: Loss | None = None
        for part in parts:
            self._check()
            own = each(loss(self._context, part))
            own = own._replace(loss=own.loss.detach())
            total = own if total is None else _added(total, own)
        assert total is not None, "every process has a part of every minibatch"
        return total

    def _summed(self, share: Loss) -> Loss:
        """Over all processes."""
        if self._context.collective.num_processes == 1:
            return share
        sums = torch.stack([share.loss, *share.metrics.values()])
        self._context.collective.sum_(sums)
        if share.per_sample is not None:
            self._context.collective.sum_(share.per_sample)
        return Loss(sums[0], dict(zip(share.metrics, sums[1:], strict=True)), share.per_sample)

    def _keep(self, per_sample: Tensor | None, minibatch: Minibatch[Any]) -> None:
        if per_sample is not None:
            before = None if self._epoch_ended else self.per_sample
            self.per_sample = per_sample.detach() if before is None else before + per_sample.detach()
        self._epoch_ended = minibatch.ends_epoch

    def _broke(self) -> Tensor:
        """0-dim: 1.0 where something was not finite in this batch, and 0.0 elsewhere."""
        return (self.broken - self.broken).ne_(0.0)

    def _stepped(self) -> None:
        self.num_steps += 1
        if self._after_step is not None and math.isfinite(float(self.broken)):
            with torch.no_grad():
                self._after_step(self._context)


def minibatch_steps(
    algorithm: Algorithm[Any, Any, Any], context: Context, prepared: object, stepper: Stepper
) -> Metrics:
    """The update of most algorithms: an optimiser step for each minibatch of each epoch. Returns the metrics' means;
    nothing where there was no minibatch."""
    means: list[Metrics] = []
    for mean in _epochs(algorithm, context, prepared, stepper):
        means.append(mean)
        if isinstance(algorithm, StopsEarly) and algorithm.stops_early(mean):
            break
    if stepper.per_sample is not None:
        context.collective.sum_(stepper.per_sample)
    return {name: torch.stack([mean[name] for mean in means]).mean() for name in means[0]} if means else {}


def _epochs(
    algorithm: Algorithm[Any, Any, Any], context: Context, prepared: object, stepper: Stepper
) -> Iterator[Metrics]:
    """Makes the steps of an epoch, and then says what the metrics' means over its minibatches were."""
    whole = in_epochs(algorithm) if stepper.takes_epochs else None
    if whole is not None:
        yield from map(stepper.epoch_steps, whole.epochs(context, prepared))
        return
    names: list[str] = []
    of_epoch: list[Tensor] = []
    for minibatch in algorithm.minibatches(context, prepared):
        metrics = stepper.gradient_step(minibatch)
        names = list(metrics)
        of_epoch.append(torch.stack(list(metrics.values())))
        if minibatch.ends_epoch:
            mean = torch.stack(of_epoch).mean(0)
            context.collective.sum_(mean[:-1])  # the gradient norm, last, is already everyone's
            of_epoch = []
            yield dict(zip(names, mean.unbind(), strict=True))


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, *, rate: float = 1.0) -> None:
    """Moves a target network towards the one that it follows: by a share `rate` of the way (Polyak averaging; 1: a
    copy), buffers and all."""
    pairs = zip(target.state_dict().values(), source.state_dict().values(), strict=True)
    for own, theirs in pairs:
        own.lerp_(theirs, rate) if own.is_floating_point() else own.copy_(theirs)


def _added(one: Loss, other: Loss) -> Loss:
    metrics = one.metrics | {n: one.metrics[n] + x if n in one.metrics else x for n, x in other.metrics.items()}
    if one.per_sample is None or other.per_sample is None:
        return Loss(one.loss + other.loss, metrics)
    return Loss(one.loss + other.loss, metrics, one.per_sample + other.per_sample)
