"""How comparisons become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rollcall.learners.batches.placement import PADDED, Layout
from rollcall.learners.batches.preference_batch import PreferenceBatch, collate_comparisons
from rollcall.learners.collators.collator import Stateless
from rollcall.learners.data.comparisons import RankedCandidates, TokenSequence


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


class LabelledCollator(Stateless):
    """A Collator of labelled rows, rankings of one: each becomes a comparison of its response with the next row's after
    the same prompt, which nobody has judged: what KTO estimates its baseline from. `group` is 1 of a desirable row."""

    def __init__(self, layout: Layout = PADDED, *, max_tokens: int) -> None:
        """`max_tokens`: a response that does not belong to the prompt is cut to it."""
        self._layout, self._max_tokens = layout, max_tokens

    def collate(
        self, items: Sequence[RankedCandidates[TokenSequence]], device: torch.device, *, step: int
    ) -> PreferenceBatch:
        rows = [item.candidates[0] for item in items]
        comparisons = [
            RankedCandidates((row, self._mismatched(row, other)), (0, 1), group=int(item.ranks == (0,)))
            for item, row, other in zip(items, rows, [*rows[1:], rows[0]], strict=True)
        ]
        return collate_comparisons(comparisons, layout=self._layout).to(device)

    def metrics(self, batch: PreferenceBatch) -> dict[str, float]:
        """Of the rows' own responses."""
        own = [batch.candidates.sizes[i] for i in batch.pairs.better.tolist()]
        return {"trained_comparisons": float(batch.num_comparisons), "trained_size": float(sum(own))}

    def _mismatched(self, row: TokenSequence, other: TokenSequence) -> TokenSequence:
        tokens = np.concatenate([row.token_ids[: row.num_prompt], other.token_ids[other.num_prompt :]])
        return TokenSequence(tokens[: max(self._max_tokens, row.num_prompt + 1)], row.num_prompt)
