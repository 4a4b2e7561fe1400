"""The model that a run keeps: as it was where it did best on what is held out, and when to stop looking for a better
one. Must never know what is trained, nor how it is judged."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from rollcall.cluster.checkpoint import read_state, write_state

_NAME = "best"  # of the state in a checkpoint


@dataclass
class _Found:
    step: int = 0  # learner steps after which the model was at its best; 0: it was not judged yet
    loss: float = math.inf
    judged: int = 0  # evaluations after the one at the best step


@runtime_checkable
class _Gathered(Protocol):
    """A module in pieces (torch's FSDPModule), as far as it is asked."""

    def reshard(self) -> None: ...


class BestModel:
    """Remembers a module's parameters and buffers at the lowest held-out loss (early stopping: Prechelt, 1998). The
    model that was not trained yet is not one to keep. Ties go to the earlier one."""

    def __init__(self, module: nn.Module, *, patience: int | None, writes: bool = True) -> None:
        """`patience`: evaluations without a better one after which there is no point in going on; None: go on.
        `writes`: False in all but one of several processes, which call `save` alike."""
        self._writes = writes
        self._module = module
        self._patience = patience
        self._found = _Found()
        self._tensors: dict[str, torch.Tensor] = {}

    @property
    def step(self) -> int:
        return self._found.step

    @property
    def gave_up(self) -> bool:
        return self._patience is not None and self._found.judged >= self._patience

    def judge(self, *, step: int, loss: float) -> None:
        """Of the module as it is now."""
        if step == 0:
            return
        if loss < self._found.loss:
            self._found = _Found(step, loss)
            self._tensors = {name: tensor.detach().clone() for name, tensor in self._state().items()}
        else:
            self._found.judged += 1

    def put_back(self) -> None:
        """Makes the module what it was at its best; of one that was never judged nothing changes."""
        with torch.no_grad():
            for name, tensor in self._state().items():
                if self._tensors:
                    tensor.copy_(self._tensors[name])

    def save(self, checkpoint: Path) -> None:
        tensors = {name: whole(tensor).cpu().numpy() for name, tensor in self._tensors.items()}
        if not self._writes:
            return
        meta: dict[str, Any] = asdict(self._found)
        if not tensors:
            meta["loss"] = None  # JSON has no infinity
        write_state(checkpoint, _NAME, tensors, meta)

    def restore(self, checkpoint: Path) -> None:
        """Takes up what `save` wrote; nothing where an earlier release wrote the checkpoint."""
        state = read_state(checkpoint, _NAME)
        if state is None:
            return
        tensors, meta = state
        self._found = _Found(**{**meta, "loss": math.inf if meta["loss"] is None else meta["loss"]})
        live = self._state()
        self._tensors = {
            name: _laid_as(live[name], torch.from_numpy(np.array(array)))
            for name, array in tensors.items()
            if name in live
        }

    def _state(self) -> dict[str, torch.Tensor]:
        """Live tensors that training changes, by name; of tied parameters, one. Of a module in pieces, the pieces."""
        let_go(self._module)
        trained = {name: value for name, value in self._module.named_parameters() if value.requires_grad}
        return {**trained, **dict(self._module.named_buffers())}


def let_go(module: nn.Module) -> None:
    """Of what a pass has gathered of a module in pieces: its parameters would show as they were then."""
    for part in module.modules():
        if isinstance(part, _Gathered):
            part.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Of one in pieces all of it, by all processes together."""
    own = tensor.detach()
    gather = getattr(own, "full_tensor", None)
    return own if gather is None else gather()


def _laid_as(live: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A whole as another tensor lies: on its device, and of one in pieces this process's piece."""
    if not hasattr(live, "full_tensor"):
        return value.to(live.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(live, DTensor)
    return distribute_tensor(value.to(live.device), live.device_mesh, live.placements, src_data_rank=None)
