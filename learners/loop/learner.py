"""The learner: takes a batch, asks the algorithm for losses, steps the optimiser, and hands out the next weights.
Blind to the algorithm, to where batches come from, and to whether its processes are one or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rollcall.cluster.books.consumption import ConsumptionLog
from rollcall.cluster.checkpoint import read_state, write_state, write_weights
from rollcall.cluster.errors import CheckpointDamaged, NonFinite
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.reports import StepOrder, StepReport
from rollcall.cluster.messages.weights import Canary, Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.learners.algorithm import Algorithm, Metrics, Minibatch, Models
from rollcall.learners.loop.collective import Collective
from rollcall.learners.loop.device_copy import DeviceCopy
from rollcall.learners.loop.flat import Readable, ReadOut, module_weights, own_parameters, stand_ins
from rollcall.learners.loop.interruption import BeforeStep, Interrupted
from rollcall.learners.loop.parameters import ReplicatedParameters, TrainedParameters, Units


class Experience(Protocol):
    """How trajectories of one kind become batches. The learner passes them through and does not look inside."""

    def collate(self, trajectories: Sequence[Any], device: torch.device, *, step: int) -> Any:
        """The batch of learner step `step`."""

    def prepare(self, algorithm: Any, models: Models, batch: Any, collective: Collective) -> Any:
        """The algorithm's own `prepare`, with what it needs of the learner's processes."""

    def metrics(self, batch: Any) -> dict[str, float]:
        """What is to be reported of a batch, beside the algorithm's own metrics."""

    def learned(self, batch: Any) -> None:
        """Called after a step that was not skipped, before its weights are read out."""

    def state(self) -> dict[str, Any]:
        """JSON for the checkpoint."""

    def load_state(self, state: dict[str, Any]) -> None: ...


class BatchSource(Protocol):
    """Where the batches of an offline run come from: a data set. (A run with actors has its coordinator cut them from
    the ticket queue.) What it gives is what the run's Experience collates."""

    def take(self, step: int) -> Sequence[Any] | None:
        """The batch of learner step `step`, the same however often it is asked for; None when there is no more."""


CONTROL_EPS = 1e-5  # PPO's (Huang et al., 2022, "The 37 implementation details")
LANGUAGE_EPS = 1e-8  # Adam's own


class LearnerConfig(BaseModel):
    """How the parameters are optimised, and by how many processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=3e-4, gt=0, description="step size of the optimiser")
    warmup_steps: int = Field(default=0, ge=0, description="learner steps over which the rate rises from zero")
    anneal_learning_rate: bool = Field(default=False, description="linearly to zero over the run's consumed steps")
    optimizer: Literal["adam", "rmsprop", "sgd"] = Field(
        default="adam", description="the update rule; rmsprop is torch's, with decay 0.99"
    )
    optimizer_eps: float | None = Field(
        default=None,
        gt=0,
        description="epsilon of Adam or RMSprop; none: PPO's 1e-5 in control, and 1e-8 for models of language, whose "
        "gradients are small: at 1e-6 a step with 1e-5 is a tenth of what it should be",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="share of each weight matrix, times the step size, that a step takes away (AdamW's)",
    )
    max_grad_norm: float | None = Field(default=0.5, gt=0, description="global norm at which gradients are clipped")
    num_processes: int = Field(default=1, ge=1, description="learner processes that share each minibatch")
    sharding: Literal["auto", "none", "fsdp"] = Field(
        default="auto",
        description="fsdp: each learner process holds a part of the parameters, of a language model that one GPU has "
        "no room for; none: each holds all of them; auto: fsdp for language models on several GPUs",
    )
    device: str = Field(default="auto", description="auto (a GPU where there is one), cpu, cuda, cuda:N")
    threads: int = Field(default=1, ge=1, description="CPU threads of each learner process")
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile of the loss; auto: where the run is long enough to pay for it"
    )
    max_skipped_steps: int = Field(
        default=5, ge=1, description="non-finite learner steps in a row after which the run stops"
    )

    def for_language(self) -> LearnerConfig:
        """With the epsilon for models of language, unless one is given."""
        return self if self.optimizer_eps is not None else self.model_copy(update={"optimizer_eps": LANGUAGE_EPS})


class Learner:
    """One learner process. All processes of a run hold the same parameters and get the same batches; each computes
    the gradient of its share of every minibatch, and the shares are summed."""

    def __init__(
        self,
        *,
        models: Mapping[str, nn.Module],
        algorithm: Algorithm,
        config: LearnerConfig,
        policy_id: str,
        run_seed: int,
        experience: Experience,
        compile_loss: bool = False,
        published: Sequence[str] | None = None,
        consumption_log: Path | None = None,
        collective: Collective | None = None,
        units: Units | None = None,
        read_out: ReadOut | None = None,
        keep_on_device: bool = False,
        canary: Callable[[Models], Canary] | None = None,
    ) -> None:
        """`units`: the parts of a model that are sharded one by one; none: these models are not sharded. `read_out`:
        what is published of a model in place of its own parameters. `keep_on_device`: process 0 has in `device_copy`
        what it handed out last, for those who fetch it from there: as much memory again as the parameters take.
        `canary`: what goes out with the weights, so that whoever acts with them can see that it has them rightly."""
        torch.set_num_threads(config.threads)
        self._device = resolve_device(config.device)
        self._models = dict(models)
        self._algorithm = algorithm
        self._config = config
        self._policy_id = policy_id
        self._experience = experience
        self._published = published
        self._collective = collective or Collective()
        self._log = (
            ConsumptionLog(consumption_log) if consumption_log is not None and self._collective.rank == 0 else None
        )
        self._read_out = read_out
        self._keep_on_device = keep_on_device
        self._canary = canary
        self.device_copy: DeviceCopy | None = None
        self.interrupted: Callable[[], bool] = lambda: False  # asked within a step, which is taken back when it says so
        self._trained = self._take_over(units)
        self._generator = torch.Generator().manual_seed(derive_seed(run_seed, "learner"))
        self._loss = self._compiled(algorithm.loss) if compile_loss else algorithm.loss
        self._skipped_in_a_row = 0
        self._idle_since = time.perf_counter()

    def weights(self, *, epoch: int, version: int) -> Weights:
        """The published models (by default all), parameters and normaliser statistics, as they are now. Where there
        are several processes, as `hand_out`."""
        canary = None if self._canary is None else self._canary(self._models)
        names, read_out = self._published_names(), self._reader()
        if self._keep_on_device:
            models = {name: self._models[name] for name in names}
            self.device_copy = DeviceCopy.of(
                models, read_out or own_parameters, epoch=epoch, version=version, canary=canary
            )
            read_out = self.device_copy.read
        weights = module_weights(
            self._models, self._policy_id, epoch=epoch, version=version, names=names, read_out=read_out
        )
        return replace(weights, canary=canary)

    def hand_out(self, *, epoch: int, version: int, checkpoint: Path | None = None) -> Weights | None:
        """The weights, and a checkpoint in the directory `checkpoint`, from process 0. Every process calls: what lies
        in pieces is read by all of them together."""
        if self._collective.rank == 0:
            weights = self.weights(epoch=epoch, version=version)
            if checkpoint is not None:
                self.save(checkpoint, weights)
            return weights
        if self._trained.whole() is not None:
            if self._canary is not None:
                self._canary(self._models)
            read_out = self._reader()
            assert read_out is not None
            for name in self._published_names():
                for parameter in read_out(self._models[name]):
                    parameter.value()
            if checkpoint is not None:
                self._trained.state()
        return None

    def update(self, trajectories: Sequence[Any], order: StepOrder) -> tuple[StepReport, Weights | None]:
        """One learner step: all epochs over the batch. The weights come from process 0 only, and from no step that was
        interrupted.

        Raises:
          NonFinite: when `max_skipped_steps` steps in a row were not finite.
        """
        torch.set_num_threads(self._config.threads)
        before = BeforeStep.of(self._buffers(), self._generator, self._experience)
        try:
            return self._update(trajectories, order)
        except Interrupted:
            before.put_back(self._buffers(), self._generator, self._experience)
            return StepReport(order.step, order.epoch, False, 0.0, 0.0, 0.0, interrupted=True), None

    def _update(self, trajectories: Sequence[Any], order: StepOrder) -> tuple[StepReport, Weights | None]:
        self._check_interrupted()
        began = time.perf_counter()
        wait_s = began - self._idle_since
        learning_rate = self._set_learning_rate(order)
        batch = self._experience.collate(trajectories, self._device, step=order.step)
        with torch.no_grad():
            prepared = self._experience.prepare(self._algorithm, self._models, batch, self._collective)
        snapshot = self._snapshot()
        try:
            means, finite = self._optimise(prepared)
        except Interrupted:
            self._restore(snapshot)
            raise
        if finite:
            self._skipped_in_a_row = 0
            self._experience.learned(batch)
        else:
            self._restore(snapshot)
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= self._config.max_skipped_steps:
                raise NonFinite(
                    f"the loss or its gradient was not finite in {self._skipped_in_a_row} learner steps in a row, "
                    f"last at step {order.step}; lower learner.learning_rate or look at the rewards"
                )
        if self._log is not None:
            self._log.append(order.step, order.epoch, trajectories)
        weights = self.hand_out(epoch=order.epoch, version=order.step + 1, checkpoint=order.checkpoint_directory)
        self._idle_since = time.perf_counter()
        result = StepReport(
            step=order.step,
            epoch=order.epoch,
            skipped=not finite,
            update_s=self._idle_since - began,
            wait_s=wait_s,
            learning_rate=learning_rate,
            metrics={**means, **self._experience.metrics(batch)},
        )
        return result, weights

    def save(self, directory: Path, weights: Weights) -> None:
        """Writes the policy and everything else this learner would need to go on."""
        write_weights(directory, weights)
        tensors: dict[str, Array] = {"generator": self._generator.get_state().numpy(), **self._trained.state()}
        for name, tensor in self._buffers().items():
            tensors[name] = tensor.detach().cpu().numpy()
        meta = {"skipped_in_a_row": self._skipped_in_a_row, "experience": self._experience.state()}
        write_state(directory, "learner", tensors, meta)

    def restore(self, checkpoint: Path) -> None:
        """Takes up the state that `save` wrote.

        Raises:
          CheckpointDamaged: when the checkpoint is of another model or optimiser.
        """
        state = read_state(checkpoint, "learner")
        if state is None:
            raise CheckpointDamaged(f"{checkpoint}: has no learner state")
        tensors, meta = state
        younger = tuple(
            prefix
            for name, model in self._models.items()
            for prefix in stand_ins(model, f"buffers.{name}", tensors.keys())
        )
        buffers = {name: tensor for name, tensor in self._buffers().items() if not name.startswith(younger)}
        own = {**self._trained.state_shapes(), **{name: tuple(tensor.shape) for name, tensor in buffers.items()}}
        foreign = sorted(own.keys() ^ (tensors.keys() - {"generator"}))
        foreign += [name for name, shape in own.items() if name in tensors and shape != tensors[name].shape]
        if foreign:
            raise CheckpointDamaged(f"{checkpoint}: of another model or optimiser: {foreign[0]} does not fit")
        self._trained.load_state(tensors)
        with torch.no_grad():
            for name, tensor in buffers.items():
                tensor.copy_(torch.from_numpy(np.array(tensors[name])))
        self._generator.set_state(torch.from_numpy(np.array(tensors["generator"])))
        self._skipped_in_a_row = int(meta["skipped_in_a_row"])
        self._experience.load_state(meta["experience"])

    def _optimise(self, prepared: Mapping[str, Tensor]) -> tuple[dict[str, float], bool]:
        """All minibatches of all epochs. Returns the metrics' means and whether everything was finite.

        A gradient that is not finite does not end the loop: looking at each would stall a GPU. It is remembered on the
        device, looked at once, and the caller takes the whole step back.
        """
        names: list[str] = []
        epoch_metrics: list[Tensor] = []
        all_metrics: list[Tensor] = []
        broken = torch.zeros((), device=self._device)
        for whole in self._algorithm.minibatches(prepared, self._generator):
            metrics = self._gradient_step(whole, broken)
            names = list(metrics)
            epoch_metrics.append(torch.stack(list(metrics.values())))
            if whole.ends_epoch:
                mean = torch.stack(epoch_metrics).mean(0)
                self._collective.sum_(mean[:-1])  # the gradient norm, last, is already everyone's
                all_metrics.append(mean)
                epoch_metrics = []
                if self._algorithm.stops_early(dict(zip(names, mean, strict=True))):
                    break
        self._collective.sum_(broken)
        values = torch.stack(all_metrics).mean(0).tolist()
        return dict(zip(names, values, strict=True)), math.isfinite(float(broken))

    def _gradient_step(self, minibatch: Minibatch, broken: Tensor) -> Metrics:
        """One optimiser step. Losses, metrics and gradients of this process's parts of the minibatch add up."""
        self._trained.zero_gradients()
        loss, metrics = self._backward(minibatch)
        norm = self._trained.sum_gradients()
        # NaN or infinity in any share reaches the summed gradient's norm or the loss, and from there this sum.
        broken.add_(norm).add_(loss)
        if self._config.max_grad_norm is not None:
            self._trained.scale_gradients((self._config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        if self._config.weight_decay:
            self._trained.decay(self._config.weight_decay)
        self._trained.step()
        return {**metrics, "loss": loss, "grad_norm": norm}

    def _backward(self, minibatch: Minibatch) -> tuple[Tensor, Metrics]:
        total: Tensor | None = None
        sums: Metrics = {}
        for part in minibatch.shards(self._collective.rank, self._collective.num_processes):
            self._check_interrupted()
            loss, metrics = self._loss(self._models, part)
            torch.autograd.backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
            sums = metrics if not sums else {name: sums[name] + value for name, value in metrics.items()}
        assert total is not None, "every process has a part of every minibatch"
        return total, sums

    def _check_interrupted(self) -> None:
        """Not among several processes: they would have to agree, in every minibatch."""
        if self._collective.num_processes == 1 and self.interrupted():
            raise Interrupted

    def _set_learning_rate(self, order: StepOrder) -> float:
        fraction = 1.0 - order.progress if self._config.anneal_learning_rate else 1.0
        if order.step < self._config.warmup_steps:
            fraction *= (order.step + 1) / self._config.warmup_steps
        learning_rate = self._config.learning_rate * fraction
        self._trained.set_learning_rate(learning_rate)
        return learning_rate

    def _take_over(self, units: Units | None) -> TrainedParameters:
        """Moves the models to the device, whole or in pieces."""
        config, build_optimizer = self._config, partial(_build_optimizer, config=self._config)
        wanted = config.sharding == "fsdp" or (config.sharding == "auto" and self._device.type == "cuda")
        if units is None or not wanted or self._collective.num_processes == 1:
            for model in self._models.values():
                model.to(self._device)
            return ReplicatedParameters(self._models, collective=self._collective, build_optimizer=build_optimizer)
        from rollcall.learners.loop.sharded import ShardedParameters

        return ShardedParameters(
            self._models,
            units=units,
            device=self._device,
            collective=self._collective,
            build_optimizer=build_optimizer,
        )

    def _published_names(self) -> Sequence[str]:
        return list(self._models) if self._published is None else self._published

    def _reader(self) -> Callable[[nn.Module], Iterable[Readable]] | None:
        """How the parameters of a model are read for others."""
        whole = self._trained.whole()
        if whole is None:
            return self._read_out
        read_out = self._read_out or own_parameters
        return lambda module: read_out(module, whole)

    def _state_tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and optimiser state by name, as this process holds them: live tensors."""
        return {**self._trained.tensors(), **self._buffers()}

    def _buffers(self) -> dict[str, Tensor]:
        return {
            f"buffers.{model_name}.{name}": buffer
            for model_name, model in self._models.items()
            for name, buffer in model.named_buffers()
        }

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._state_tensors().items()}

    def _restore(self, snapshot: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._state_tensors().items():
                tensor.copy_(snapshot[name])

    @staticmethod
    def _compiled(loss: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(loss, fullgraph=True, dynamic=False)


def resolve_device(name: str) -> torch.device:
    """auto: the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _build_optimizer(parameters: Sequence[nn.Parameter], config: LearnerConfig) -> torch.optim.Optimizer:
    epsilon = CONTROL_EPS if config.optimizer_eps is None else config.optimizer_eps
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.learning_rate, eps=epsilon, fused=True)
    if config.optimizer == "rmsprop":
        # torch's: its average of squares begins at 0, and epsilon stands outside the root. TensorFlow's, which A2C was
        # published with, begins at 1 and has epsilon inside: its first steps are smaller.
        return torch.optim.RMSprop(parameters, lr=config.learning_rate, alpha=0.99, eps=epsilon)
    return torch.optim.SGD(parameters, lr=config.learning_rate)
