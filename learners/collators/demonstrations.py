"""How demonstrations become a batch of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.batches.placement import PADDED, Layout
from rollcall.learners.batches.token_batch import TokenBatch, TokenSample, collate_tokens
from rollcall.learners.collators.collator import Stateless
from rollcall.learners.data.demonstrations import Demonstration


class DemonstrationCollator(Stateless):
    """A Collator of demonstrations."""

    def __init__(self, layout: Layout = PADDED) -> None:
        self._layout = layout

    def collate(self, items: Sequence[Demonstration], device: torch.device, *, step: int) -> TokenBatch:
        return collate_tokens([_sample(item) for item in items], step=step, layout=self._layout).to(device)

    def metrics(self, batch: TokenBatch) -> dict[str, float]:
        return {"trained_tokens": float(batch.num_sampled)}


def _sample(item: Demonstration) -> TokenSample:
    """As if a policy had sampled what is imitated."""
    nothing = np.zeros(len(item.token_ids), np.float32)
    return TokenSample(item.token_ids, item.imitated, SampledTokens(nothing), versions=nothing.astype(np.int64))
