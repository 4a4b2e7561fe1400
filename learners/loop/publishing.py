"""What a learner hands out: its published models as one version of Weights, in the dtype of those who act with them,
and with the canary by which they see that they have them rightly. For checkpoints, the same in full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from rollcall.cluster.messages.weights import Canary, Weights, as_torch
from rollcall.learners.algorithm import Models
from rollcall.learners.loop.canary import with_fingerprints
from rollcall.learners.loop.device_copy import DeviceCopy
from rollcall.learners.models.flat import Readable, ReadOut, module_weights, own_parameters
from rollcall.learners.update import TrainedParameters

MakeCanary = Callable[[Models], Canary]


class Publisher:
    """Of one learner process. Where parameters lie in pieces, all processes read them together."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        trained: TrainedParameters,
        *,
        policy_id: str,
        names: Sequence[str] | None = None,
        read_out: ReadOut | None = None,
        dtype: str = "float32",
        keep_on_device: bool = False,
        canary: MakeCanary | None = None,
    ) -> None:
        """Args as the Learner's. `names`: of the models that are published; None: all."""
        self._models = models
        self._trained = trained
        self._policy_id = policy_id
        self._names = list(models) if names is None else names
        self._read_out = read_out
        self._dtype = dtype
        self._keep_on_device = keep_on_device
        self._canary = canary
        self.device_copy: DeviceCopy | None = None

    def weights(self, *, epoch: int, version: int) -> Weights:
        """Parameters and normaliser statistics as they are now, the parameters in the published dtype."""
        canary = None if self._canary is None else self._canary(self._models)
        reader = self._reader()
        if self._keep_on_device:
            models = {name: self._models[name] for name in self._names}
            as_published = getattr(torch, self._dtype)
            copy = DeviceCopy.of(models, reader or own_parameters, dtype=as_published, epoch=epoch, version=version)
            canary = None if canary is None else with_fingerprints(canary, copy.tensors, self._dtype)
            self.device_copy = replace(copy, canary=canary)
            reader = copy.read
        weights = self._read(reader, self._dtype, epoch=epoch, version=version)
        if canary is not None and canary.fingerprints is None:
            canary = with_fingerprints(canary, as_torch(weights), self._dtype)
        return replace(weights, canary=canary)

    def in_full(self, weights: Weights) -> Weights:
        """The same version as a checkpoint keeps it: float32, which evaluation rounds as it was rounded for actors."""
        if self._dtype == "float32":
            return weights
        return self._read(self._reader(), "float32", epoch=weights.epoch, version=weights.version)

    def take_part(self, *, in_full: bool) -> None:
        """For a process that publishes nothing: reads what another one does, in the same order."""
        if self._trained.in_pieces:
            if self._canary is not None:
                self._canary(self._models)
            for _ in range(1 + (in_full and self._dtype != "float32")):
                reader = self._reader() or own_parameters
                for name in self._names:
                    for parameter in reader(self._models[name]):
                        parameter.value()

    def _read(
        self, reader: Callable[[nn.Module], Iterable[Readable]] | None, dtype: str, *, epoch: int, version: int
    ) -> Weights:
        return module_weights(
            self._models,
            self._policy_id,
            epoch=epoch,
            version=version,
            names=self._names,
            read_out=reader,
            dtype=getattr(torch, dtype),
        )

    def _reader(self) -> Callable[[nn.Module], Iterable[Readable]] | None:
        """How the parameters of a model are read for others."""
        whole = self._trained.whole()
        if whole is None:
            return self._read_out
        read_out = self._read_out or own_parameters
        return lambda module: read_out(module, whole)
