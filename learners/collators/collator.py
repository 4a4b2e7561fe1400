"""What a learner asks of those who bring it its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array

Item = TypeVar("Item", contravariant=True)
Batch = TypeVar("Batch")
Seen = TypeVar("Seen", contravariant=True)


@dataclass(frozen=True)
class CollatorState:
    """For the checkpoint. A step that is taken back takes back `values` alone, and copies no large arrays for it: so
    `collate` may change those only, and `learned` the arrays too."""

    values: Mapping[str, Any] = field(default_factory=dict)  # JSON, a copy
    arrays: Mapping[str, Array] = field(default_factory=dict)  # large ones, a replay buffer's say; may be live


class Collator(Protocol[Item, Batch]):
    """How trajectories of one kind become batches. The learner passes both through and does not look inside."""

    def collate(self, trajectories: Sequence[Item], device: torch.device, *, step: int) -> Batch:
        """The batch of learner step `step`."""

    def metrics(self, batch: Batch) -> dict[str, float]:
        """What is to be reported of a batch, beside the algorithm's own metrics."""

    def learned(self, batch: Batch, per_sample: Tensor | None) -> None:
        """Called after a step that was not skipped, before its weights are read out, with the algorithm's `per_sample`
        values (priorities, say), where it has any."""

    def state(self) -> CollatorState: ...

    def load_state(self, state: CollatorState) -> None: ...


@runtime_checkable
class KeepsFiles(Protocol):
    """A Collator that remembers too much to be written anew with every checkpoint."""

    def write_files(self, directory: Path) -> None:
        """Into a checkpoint that is being made beside the others: what has not changed since may be linked to theirs.
        Process 0 does."""

    def read_files(self, checkpoint: Path) -> None:
        """After `load_state`. Every process does."""


@runtime_checkable
class SamplesKept(Protocol[Seen]):
    """A Collator whose batches hold more than the trajectories of their step."""

    def sampled(self, batch: Seen) -> tuple[int, Array, Array]:
        """(how many samples there are, and the attempts that they are from, each once: tickets [N], attempts [N], in
        order)"""


class Stateless:
    """The rest of a Collator that remembers nothing: of a step nothing but the weights is changed."""

    def learned(self, batch: object, per_sample: Tensor | None) -> None: ...

    def state(self) -> CollatorState:
        return CollatorState()

    def load_state(self, state: CollatorState) -> None: ...
