"""How gradients that actors computed become a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rollcall.cluster.messages.experience import GymGradient
from rollcall.learners.batches.gradient_batch import GradientBatch, stack_gradients
from rollcall.learners.collators.collator import Stateless


class GradientCollator(Stateless):
    """A Collator of gradients."""

    def collate(self, items: Sequence[GymGradient], device: torch.device, *, step: int) -> GradientBatch:
        return stack_gradients(items, device)

    def metrics(self, batch: GradientBatch) -> dict[str, float]:
        return {}
