"""The learner: takes a batch, asks the algorithm for losses, steps the optimiser, and hands out the next weights.
Blind to the algorithm, to where batches come from, and to whether its processes are one or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.adam import adam

from rollcall.cluster.checkpoint import read_state, write_state, write_weights
from rollcall.cluster.consumption import ConsumptionLog
from rollcall.cluster.errors import CheckpointDamaged, NonFinite
from rollcall.cluster.messages import Array, Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.learners.algorithm import Algorithm, Metrics, Minibatch, Models
from rollcall.learners.collective import Collective
from rollcall.learners.flat import flatten_module, module_weights


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


class LearnerConfig(BaseModel):
    """How the parameters are optimised, and by how many processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=3e-4, gt=0, description="step size of the optimiser")
    warmup_steps: int = Field(default=0, ge=0, description="learner steps over which the rate rises from zero")
    anneal_learning_rate: bool = Field(default=False, description="linearly to zero over the run's consumed steps")
    optimizer: Literal["adam", "rmsprop", "sgd"] = Field(default="adam", description="the update rule")
    optimizer_eps: float = Field(default=1e-5, gt=0, description="epsilon of Adam or RMSprop (PPO's is 1e-5)")
    max_grad_norm: float | None = Field(default=0.5, gt=0, description="global norm at which gradients are clipped")
    num_processes: int = Field(default=1, ge=1, description="learner processes that share each minibatch")
    device: str = Field(default="auto", description="auto (a GPU where there is one), cpu, cuda, cuda:N")
    threads: int = Field(default=1, ge=1, description="CPU threads of each learner process")
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile of the loss; auto: where the run is long enough to pay for it"
    )
    max_skipped_steps: int = Field(
        default=5, ge=1, description="non-finite learner steps in a row after which the run stops"
    )


@dataclass(frozen=True, slots=True)
class StepOrder:
    """One learner step, as the driver asks for it."""

    step: int  # v: batches consumed before; the weights that come out have version step + 1
    epoch: int
    progress: float  # fraction of the run consumed before this step, in [0, 1]
    checkpoint_directory: Path | None = None  # where to write the learner's state after the step


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a learner step reports beside the weights."""

    step: int
    epoch: int
    skipped: bool  # the loss or a gradient was not finite: the parameters are those from before
    update_s: float
    wait_s: float  # seconds the learner stood idle before this step
    learning_rate: float
    metrics: Mapping[str, float] = field(default_factory=dict)


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
    ) -> None:
        torch.set_num_threads(config.threads)
        self._device = resolve_device(config.device)
        self._models = {name: model.to(self._device) for name, model in models.items()}
        self._algorithm = algorithm
        self._config = config
        self._policy_id = policy_id
        self._experience = experience
        self._published = published
        self._collective = collective or Collective()
        self._log = (
            ConsumptionLog(consumption_log) if consumption_log is not None and self._collective.rank == 0 else None
        )
        self._flat = flatten_module(nn.ModuleDict(self._models), only_trained=True)
        self._optimizer = _build_optimizer(self._flat.parameter, config, self._device)
        self._generator = torch.Generator().manual_seed(derive_seed(run_seed, "learner"))
        self._loss = self._compiled(algorithm.loss) if compile_loss else algorithm.loss
        self._skipped_in_a_row = 0
        self._idle_since = time.perf_counter()

    def weights(self, *, epoch: int, version: int) -> Weights:
        """The published models (by default all), parameters and normaliser statistics, as they are now."""
        return module_weights(self._models, self._policy_id, epoch=epoch, version=version, names=self._published)

    def update(self, trajectories: Sequence[Any], order: StepOrder) -> tuple[StepResult, Weights | None]:
        """One learner step: all epochs over the batch. The weights come from process 0 only.

        Raises:
          NonFinite: when `max_skipped_steps` steps in a row were not finite.
        """
        torch.set_num_threads(self._config.threads)
        began = time.perf_counter()
        wait_s = began - self._idle_since
        learning_rate = self._set_learning_rate(order)
        batch = self._experience.collate(trajectories, self._device, step=order.step)
        with torch.no_grad():
            prepared = self._experience.prepare(self._algorithm, self._models, batch, self._collective)
        snapshot = self._snapshot()
        means, finite = self._optimise(prepared)
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
        weights = None
        if self._collective.rank == 0:
            weights = self.weights(epoch=order.epoch, version=order.step + 1)
            if self._log is not None:
                self._log.append(order.step, order.epoch, trajectories)
            if order.checkpoint_directory is not None:
                self.save(order.checkpoint_directory, weights)
        self._idle_since = time.perf_counter()
        result = StepResult(
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
        tensors: dict[str, Array] = {"generator": self._generator.get_state().numpy()}
        for name, tensor in self._state_tensors().items():
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
        own = self._state_tensors()
        foreign = sorted(own.keys() ^ (tensors.keys() - {"generator"}))
        foreign += [n for n in own if n in tensors and tuple(own[n].shape) != tensors[n].shape]
        if foreign:
            raise CheckpointDamaged(f"{checkpoint}: of another model or optimiser: {foreign[0]} does not fit")
        with torch.no_grad():
            for name, tensor in own.items():
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
        gradient = self._flat.gradient
        gradient.zero_()
        loss, metrics = self._backward(minibatch)
        self._collective.sum_(gradient)
        norm = torch.linalg.vector_norm(gradient)
        # NaN or infinity in any share reaches the summed gradient's norm or the loss, and from there this sum.
        broken.add_(norm).add_(loss)
        if self._config.max_grad_norm is not None:
            gradient.mul_((self._config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self._step_optimizer()
        return {**metrics, "loss": loss, "grad_norm": norm}

    def _backward(self, minibatch: Minibatch) -> tuple[Tensor, Metrics]:
        total: Tensor | None = None
        sums: Metrics = {}
        for part in minibatch.shards(self._collective.rank, self._collective.num_processes):
            loss, metrics = self._loss(self._models, part)
            torch.autograd.backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
            sums = metrics if not sums else {name: sums[name] + value for name, value in metrics.items()}
        assert total is not None, "every process has a part of every minibatch"
        return total, sums

    def _step_optimizer(self) -> None:
        """Adam through its functional form: of the 0.1 ms that Optimizer.step takes for one small flat parameter, nine
        tenths are its hooks and checks (measured), a seventh of a small network's whole update."""
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

    def _set_learning_rate(self, order: StepOrder) -> float:
        fraction = 1.0 - order.progress if self._config.anneal_learning_rate else 1.0
        if order.step < self._config.warmup_steps:
            fraction *= (order.step + 1) / self._config.warmup_steps
        learning_rate = self._config.learning_rate * fraction
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate
        return learning_rate

    def _state_tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and optimiser state by name: live tensors, to be read or copied into."""
        tensors: dict[str, Tensor] = {"parameters": self._flat.parameter}
        for model_name, model in self._models.items():
            tensors |= {f"buffers.{model_name}.{name}": buffer for name, buffer in model.named_buffers()}
        for name, value in self._optimizer.state[self._flat.parameter].items():
            tensors[f"optimizer.{name}"] = value
        return tensors

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


def _build_optimizer(parameter: nn.Parameter, config: LearnerConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser over the one flat parameter, its state allocated: a step with a zero gradient and zero rate."""
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam([parameter], lr=config.learning_rate, eps=config.optimizer_eps, fused=True)
    elif config.optimizer == "rmsprop":
        # A2C's: TensorFlow's RMSprop, with decay 0.99.
        optimizer = torch.optim.RMSprop([parameter], lr=config.learning_rate, alpha=0.99, eps=config.optimizer_eps)
    else:
        optimizer = torch.optim.SGD([parameter], lr=config.learning_rate)
    _allocate_state(optimizer, parameter)
    assert math.isfinite(float(torch.linalg.vector_norm(parameter.detach())))
    return optimizer


def _allocate_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """State exists before the first step, so that the first checkpoint has the layout of all others."""
    with torch.no_grad():
        before = parameter.detach().clone()
        optimizer.step()  # the gradient is zero
        parameter.copy_(before)
        for value in optimizer.state[parameter].values():
            value.zero_()
