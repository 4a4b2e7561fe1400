"""The learner: takes a batch, has the algorithm's update made of it, and publishes the next weights. Blind to the
algorithm, to where batches come from, and to whether its processes are one or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rollcall.cluster.books.consumption import ConsumptionLog
from rollcall.cluster.checkpoint import read_state, write_state, write_weights
from rollcall.cluster.errors import CheckpointDamaged, NonFinite
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.reports import StepOrder, StepReport
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.learners.algorithm import TARGET, Algorithm, Context, StepsApart, with_own_models
from rollcall.learners.collators.collator import Collator, CollatorState, KeepsFiles, SamplesKept
from rollcall.learners.collective import Collective
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.device_copy import DeviceCopy
from rollcall.learners.loop.footprint import SNAPSHOT_BYTES
from rollcall.learners.loop.fused_step import fused_step
from rollcall.learners.loop.heap import keep_freed_memory
from rollcall.learners.loop.interruption import BeforeStep, Interrupted
from rollcall.learners.loop.parameters import FsdpUnits, ReplicatedParameters
from rollcall.learners.loop.publishing import MakeCanary, Publisher
from rollcall.learners.loop.schedules import rate_fraction
from rollcall.learners.models.flat import ReadOut, init_missing
from rollcall.learners.update import LossFunction, Stepper, TrainedParameters, UpdatesItself, minibatch_steps

COLLATOR = "collator."  # before the names of a collator's arrays in a checkpoint


class Learner:
    """One learner process. All processes of a run hold the same parameters and get the same batches; each computes
    the gradient of its share of every minibatch, and the shares are summed.

    Args:
      models: those of the run; the algorithm's own are added here, unless they are among them.
      spaces: (observation, action) in control.
      fsdp_units: the parts of a model that are sharded one by one; none: these models are not sharded.
      read_out: what is published of a model in place of its own parameters.
      keep_on_device: process 0 has in `device_copy` what it published last, for those who fetch it from there: as
        much memory again as the parameters take.
      canary: what goes out with the weights, so that whoever acts with them can see that it has them rightly.
      published_dtype: of parameters as they are handed out: of whoever acts with them, who compares what it has with
        the canary's fingerprints. Checkpoints have float32.
      weights_dtype: of what is trained, as passes read it; with bfloat16, for Adam, it is stepped as float32 still.
      compiles: the loss, and where it can be the whole gradient step (fused_step.py).
      frozen_dtype: of what is not: a reference, a model beneath its adapters.
    """

    def __init__(
        self,
        *,
        models: Mapping[str, nn.Module],
        algorithm: Algorithm[Any, Any, Any],
        config: LearnerConfig,
        policy_id: str,
        run_seed: int,
        collator: Collator[Any, Any],
        spaces: tuple[gym.Space[Any], gym.Space[Any]] | None = None,
        compiles: bool = False,
        published: Sequence[str] | None = None,
        consumption_log: Path | None = None,
        collective: Collective | None = None,
        fsdp_units: FsdpUnits | None = None,
        read_out: ReadOut | None = None,
        keep_on_device: bool = False,
        canary: MakeCanary | None = None,
        published_dtype: str = "float32",
        weights_dtype: str = "float32",
        frozen_dtype: str = "float32",
    ) -> None:
        torch.set_num_threads(config.threads)
        keep_freed_memory()
        self._device = resolve_device(config.device)
        self._models = with_own_models(algorithm, models)
        self._algorithm = algorithm
        self._config = config
        self._collator = collator
        self._collective = collective or Collective()
        self._log = (
            ConsumptionLog(consumption_log) if consumption_log is not None and self._collective.rank == 0 else None
        )
        self._copy: Mapping[str, Tensor] | None = None  # of a small model, before the batch that it learns from
        self.interrupted: Callable[[], bool] = lambda: False  # asked within a step, which is taken back when it says so
        self._freeze_as(getattr(torch, frozen_dtype))
        self._trained = self._take_over(fsdp_units, weights_dtype)
        self.in_pieces = self._trained.in_pieces  # then whoever reads parameters, or makes a pass, does so with all
        self._publisher = Publisher(
            self._models,
            self._trained,
            policy_id=policy_id,
            names=published,
            read_out=read_out,
            dtype=published_dtype,
            keep_on_device=keep_on_device,
            canary=canary,
        )
        self._generator = torch.Generator().manual_seed(derive_seed(run_seed, "learner"))
        self._context = Context(self._models, self._generator, self._collective, spaces)
        self._stepper = self._build_stepper(compiles)
        self._skipped_in_a_row = 0
        self._idle_since = time.perf_counter()

    def weights(self, *, epoch: int, version: int) -> Weights:
        """The published models (by default all), parameters and normaliser statistics, as they are now. Where there
        are several processes, as `publish`."""
        return self._publisher.weights(epoch=epoch, version=version)

    @property
    def device_copy(self) -> DeviceCopy | None:
        return self._publisher.device_copy

    def publish(self, *, epoch: int, version: int, checkpoint: Path | None = None) -> Weights | None:
        """The weights, and a checkpoint in the directory `checkpoint`, from process 0. Every process calls: what lies
        in pieces is read by all of them together."""
        if self._collective.rank == 0:
            weights = self.weights(epoch=epoch, version=version)
            if checkpoint is not None:
                self.save(checkpoint, weights)
            return weights
        self._publisher.take_part(in_full=checkpoint is not None)
        if checkpoint is not None and self._trained.in_pieces:
            self._trained.state()
        return None

    def update(self, trajectories: Sequence[Any], order: StepOrder) -> tuple[StepReport, Weights | None]:
        """One learner step: all epochs over the batch. The weights come from process 0 only, and from no step that was
        interrupted.

        Raises:
          NonFinite: when `max_skipped_steps` steps in a row were not finite.
        """
        torch.set_num_threads(self._config.threads)
        buffers = self._buffers(targets=False)
        before = BeforeStep.of(buffers, self._generator, self._collator)
        try:
            return self._update(trajectories, order)
        except Interrupted:
            before.put_back(buffers, self._generator, self._collator)
            return StepReport(order.step, order.epoch, False, 0.0, 0.0, 0.0, interrupted=True), None

    def _update(self, trajectories: Sequence[Any], order: StepOrder) -> tuple[StepReport, Weights | None]:
        self._stepper.begin()
        self._check_interrupted()
        began = time.perf_counter()
        wait_s = began - self._idle_since
        learning_rate = self._set_learning_rate(order)
        batch = self._collator.collate(trajectories, self._device, step=order.step)
        self._context.noted.clear()
        with torch.no_grad():
            prepared = self._algorithm.prepare(self._context, batch)
        self._copy = self._copied_state()
        try:
            means, finite = self._optimise(prepared)
        except Interrupted:
            self._take_back()
            raise
        finally:
            self._copy = None
        if finite:
            self._skipped_in_a_row = 0
            self._collator.learned(batch, self._stepper.per_sample)
        else:
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= self._config.max_skipped_steps:
                raise NonFinite(
                    f"the loss or its gradient was not finite in {self._skipped_in_a_row} learner steps in a row, "
                    f"last at step {order.step}; lower learner.learning_rate or look at the rewards"
                )
        if self._log is not None:
            self._log.append(order.step, order.epoch, trajectories)
            if isinstance(self._collator, SamplesKept):
                self._log.append_sampled(order.step, order.epoch, *self._collator.sampled(batch))
        weights = self.publish(epoch=order.epoch, version=order.step + 1, checkpoint=order.checkpoint_directory)
        self._idle_since = time.perf_counter()
        result = StepReport(
            step=order.step,
            epoch=order.epoch,
            skipped=not finite,
            update_s=self._idle_since - began,
            wait_s=wait_s,
            learning_rate=learning_rate,
            metrics={**means, **self._collator.metrics(batch)},
        )
        return result, weights

    def save(self, directory: Path, weights: Weights) -> None:
        """Writes the policy and everything else this learner would need to go on. `weights`: as it publishes them."""
        write_weights(directory, self._publisher.in_full(weights))
        tensors: dict[str, Array] = {"generator": self._generator.get_state().numpy(), **self._trained.state()}
        for name, tensor in self._buffers().items():
            tensors[name] = tensor.detach().cpu().numpy()
        state = self._collator.state()
        tensors |= {COLLATOR + name: array for name, array in state.arrays.items()}
        meta = {"skipped_in_a_row": self._skipped_in_a_row, "experience": state.values}
        write_state(directory, "learner", tensors, meta)
        if isinstance(self._collator, KeepsFiles):
            self._collator.write_files(directory)

    def restore(self, checkpoint: Path) -> None:
        """Takes up the state that `save` wrote.

        Raises:
          CheckpointDamaged: when the checkpoint is of another model or optimiser.
        """
        state = read_state(checkpoint, "learner")
        if state is None:
            raise CheckpointDamaged(f"{checkpoint}: has no learner state")
        tensors, meta = state
        arrays = {name: tensors.pop(name) for name in list(tensors) if name.startswith(COLLATOR)}
        younger = tuple(
            prefix
            for name, model in self._models.items()
            for prefix in init_missing(model, f"buffers.{name}", tensors.keys())
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
        arrays = {name.removeprefix(COLLATOR): array for name, array in arrays.items()}
        self._collator.load_state(CollatorState(meta["experience"], arrays))
        if isinstance(self._collator, KeepsFiles):
            self._collator.read_files(checkpoint)

    def _build_stepper(self, compiles: bool) -> Stepper:
        algorithm, context, limit = self._algorithm, self._context, self._config.max_grad_norm
        return Stepper(
            algorithm,
            context,
            self._trained,
            loss=_compiled(algorithm.loss) if compiles else None,
            whole_step=fused_step(algorithm, context, self._trained, max_grad_norm=limit) if compiles else None,
            max_grad_norm=limit,
            check=self._check_interrupted,
        )

    def _freeze_as(self, dtype: torch.dtype) -> None:
        for parameter in nn.ModuleDict(self._models).parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def _optimise(self, prepared: object) -> tuple[dict[str, float], bool]:
        """The batch's update. Returns the metrics, and whether everything was finite: what was not changed nothing, nor
        did anything after it."""
        stepper, algorithm = self._stepper, self._algorithm
        if isinstance(algorithm, UpdatesItself):
            metrics = algorithm.update(self._context, prepared, stepper)
        else:
            metrics = minibatch_steps(algorithm, self._context, prepared, stepper)
        metrics = {**metrics, **self._context.noted}
        values = torch.stack(list(metrics.values())).tolist() if metrics else []
        return dict(zip(metrics, values, strict=True)), math.isfinite(float(stepper.broken))

    def _check_interrupted(self) -> None:
        """Where it can be taken back: what was made of a batch by a large model's optimiser steps cannot, and such a
        batch is finished. Not among several processes: they would have to agree, in every minibatch."""
        if self._collective.num_processes > 1 or (self._stepper.num_steps and self._copy is None):
            return
        if self.interrupted():
            raise Interrupted

    def _set_learning_rate(self, order: StepOrder) -> float:
        fraction = rate_fraction(self._config.schedule, step=order.step, progress=order.progress)
        self._trained.scale_learning_rates(fraction)
        return self._config.learning_rate * fraction

    def _take_over(self, fsdp_units: FsdpUnits | None, dtype: str) -> TrainedParameters:
        """Moves the models to the device, whole or in pieces."""
        config, collective = self._config, self._collective
        wanted = config.sharding == "fsdp" or (config.sharding == "auto" and self._device.type == "cuda")
        settings: dict[str, Any] = {
            "collective": collective,
            "optimizer": config.optimizer,
            "learning_rate": config.learning_rate,
            "dtype": getattr(torch, dtype),
            "offload": config.offload_optimizer and self._device.type == "cuda",
        }
        if fsdp_units is not None and wanted and collective.num_processes > 1:
            # Only where it is wanted: torch's FSDP takes a third as long to import as torch itself.
            from rollcall.learners.loop.sharded import ShardedParameters

            return ShardedParameters(self._models, units=fsdp_units, device=self._device, **settings)
        for model in self._models.values():
            model.to(self._device)
        if isinstance(self._algorithm, StepsApart):
            given = self._algorithm.learning_rates().items()
            settings["apart"] = {name: rate or config.learning_rate for name, rate in given}
        return ReplicatedParameters(self._models, **settings)

    def _state_tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and optimiser state by name, as this process holds them: live tensors."""
        return {**self._trained.tensors(), **self._buffers()}

    def _buffers(self, *, targets: bool = True) -> dict[str, Tensor]:
        """What is state beside what is trained: buffers, and target networks whole."""
        return {
            f"buffers.{model_name}.{name}": tensor
            for model_name, model in self._models.items()
            if targets or not model_name.startswith(TARGET)
            for name, tensor in (
                model.state_dict(keep_vars=True).items() if model_name.startswith(TARGET) else model.named_buffers()
            )
        }

    def _copied_state(self) -> dict[str, Tensor] | None:
        """What optimiser steps change, as it is now: of a small model, for which that is little, and of a learner that
        may be interrupted."""
        tensors = self._state_tensors()
        small = sum(tensor.nbytes for tensor in tensors.values()) <= SNAPSHOT_BYTES
        if self._collective.num_processes > 1 or not small:
            return None
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def _take_back(self) -> None:
        if self._copy is not None:
            with torch.no_grad():
                for name, tensor in self._state_tensors().items():
                    tensor.copy_(self._copy[name])


def resolve_device(name: str) -> torch.device:
    """auto: the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _compiled(loss: LossFunction) -> LossFunction:
    compiled: LossFunction = torch.compile(loss, fullgraph=True, dynamic=False)
    return compiled
