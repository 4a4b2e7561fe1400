"""The published parameters as they were handed out last, where the learner has them: for actors that fetch weights from
its GPU. Knows how parameters are read out, and nothing of who fetches them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rollcall.cluster.messages.weights import Canary
from rollcall.learners.models.flat import Readable


@dataclass(frozen=True, slots=True)
class DeviceCopy:
    """One version of the published models. Never written to: a step may change the model while this is fetched."""

    epoch: int
    version: int
    tensors: Mapping[str, Tensor]  # "<model>.<its name in the model>" -> of the model's shape
    canary: Canary | None
    _readables: Mapping[nn.Module, list[Readable]]

    @classmethod
    def of(
        cls,
        models: Mapping[str, nn.Module],
        read_out: Callable[[nn.Module], Iterable[Readable]],
        *,
        dtype: torch.dtype,
        epoch: int,
        version: int,
        canary: Canary | None = None,
    ) -> DeviceCopy:
        """Copies what `read_out` gives of each model, in `dtype`. What lies in pieces is put together once, here."""
        tensors: dict[str, Tensor] = {}
        readables: dict[nn.Module, list[Readable]] = {}
        for name, model in models.items():
            readables[model] = []
            for parameter in read_out(model):
                copy = parameter.value().detach().to(dtype, copy=True)
                tensors[f"{name}.{parameter.name}"] = copy
                readables[model].append(Readable(parameter.name, copy, copy.detach))
        return cls(epoch, version, tensors, canary, readables)

    def read(self, model: nn.Module) -> list[Readable]:
        """The copies of this model's parameters, as `read_out` gave them."""
        return self._readables[model]
