"""How steps of a recorded set become a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rollcall.learners.batches.replay_batch import ReplayMinibatch, Transitions
from rollcall.learners.collators.collator import Stateless
from rollcall.learners.data.recorded import RecordedSteps


class RecordedCollator(Stateless):
    """A Collator of numbers of steps."""

    def __init__(self, steps: RecordedSteps, *, discount: float) -> None:
        self._steps = steps
        self._discount = discount

    def collate(self, items: Sequence[int], device: torch.device, *, step: int) -> Transitions:
        rows = self._steps.rows(np.array(items, np.int64), discount=self._discount)
        return rows.map(lambda array: torch.from_numpy(array).to(device, non_blocking=True))

    def metrics(self, batch: Transitions) -> dict[str, float]:
        return {"trained_steps": float(len(batch))}


def whole(batch: Transitions) -> ReplayMinibatch:
    """A batch as its only minibatch."""
    size = len(batch)
    return ReplayMinibatch(batch, size, torch.arange(size, device=batch.rewards.device), size, ends_epoch=True)
