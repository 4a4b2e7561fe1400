"""How comparisons become a batch, and passes over it that the learner's processes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rollcall.learners.batches.preference_batch import PreferenceBatch, PreferencePart, collate_comparisons
from rollcall.learners.data.comparisons import RankedCandidates
from rollcall.learners.loop.collator import Stateless
from rollcall.learners.loop.collective import Collective


class PreferenceCollator(Stateless):
    """A Collator of comparisons."""

    def collate(self, items: Sequence[RankedCandidates[Any]], device: torch.device, *, step: int) -> PreferenceBatch:
        return collate_comparisons(items).to(device)

    def metrics(self, batch: PreferenceBatch) -> dict[str, float]:
        """Of the batch as a whole, beside the algorithm's."""
        return {"trained_comparisons": float(batch.num_comparisons), "trained_size": float(sum(batch.candidates.sizes))}


def each_candidate(
    batch: PreferenceBatch, budget: int, collective: Collective, evaluate: Callable[[PreferencePart], Tensor]
) -> Tensor:
    """[N], without gradient: each process evaluates its share of the batch's parts, [n] numbers of the n candidates of
    one, and all get the whole."""
    values = torch.zeros(batch.num_candidates, device=batch.pairs.better.device)
    with torch.no_grad():
        for comparisons in batch.parts(budget)[collective.rank :: collective.num_processes]:
            part = batch.part(comparisons)
            values[list(part.chosen)] = evaluate(part).float()
    collective.sum_(values)
    return values
