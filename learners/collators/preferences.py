"""How comparisons become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rollcall.learners.batches.placement import PADDED, Layout
from rollcall.learners.batches.preference_batch import PreferenceBatch, collate_comparisons
from rollcall.learners.collators.collator import Stateless
from rollcall.learners.data.comparisons import RankedCandidates


class PreferenceCollator(Stateless):
    """A Collator of comparisons."""

    def __init__(self, layout: Layout = PADDED) -> None:
        """`layout`: of policies; other models have padded rows."""
        self._layout = layout

    def collate(self, items: Sequence[RankedCandidates[Any]], device: torch.device, *, step: int) -> PreferenceBatch:
        return collate_comparisons(items, layout=self._layout).to(device)

    def metrics(self, batch: PreferenceBatch) -> dict[str, float]:
        """Of the batch as a whole, beside the algorithm's."""
        return {"trained_comparisons": float(batch.num_comparisons), "trained_size": float(sum(batch.candidates.sizes))}
