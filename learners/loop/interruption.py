"""How a learner step is given up in its middle: whoever is within it is thrown out, and what it changed is put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rollcall.learners.collators.collator import Collator, CollatorState


class Interrupted(Exception):
    """Out of the middle of a step that is to be taken back."""


@dataclass(frozen=True, slots=True)
class BeforeStep:
    """What a step changes before the optimiser begins: for that, the learner's snapshot is taken later."""

    buffers: Mapping[str, Tensor]
    generator: Tensor
    collator: CollatorState

    @classmethod
    def of(cls, buffers: Mapping[str, Tensor], generator: torch.Generator, collator: Collator[Any, Any]) -> BeforeStep:
        copies = {name: buffer.detach().clone() for name, buffer in buffers.items()}
        return cls(copies, generator.get_state(), collator.state())

    def put_back(self, buffers: Mapping[str, Tensor], generator: torch.Generator, collator: Collator[Any, Any]) -> None:
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(self.buffers[name])
        generator.set_state(self.generator)
        collator.load_state(self.collator)
