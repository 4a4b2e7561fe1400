"""Between the learner, which does not know what it learns from, and comparisons: as language.py for trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rollcall.learners.algorithm import Models
from rollcall.learners.batches.preference_batch import PreferenceBatch, PreferencePart, collate_comparisons
from rollcall.learners.data.comparisons import RankedCandidates
from rollcall.learners.loop.collective import Collective

# A pass over the whole batch without gradient: one number per candidate, [N].
EachCandidate = Callable[[Callable[[PreferencePart], Tensor]], Tensor]


class PreferenceExperience:
    """What the learner asks of its experience, for comparisons."""

    def __init__(self, *, budget: int) -> None:
        """`budget`: tokens or steps of one forward pass."""
        self._budget = budget

    def collate(self, items: Sequence[RankedCandidates[Any]], device: torch.device, *, step: int) -> PreferenceBatch:
        return collate_comparisons(items).to(device)

    def prepare(self, algorithm: Any, models: Models, batch: PreferenceBatch, collective: Collective) -> Any:
        return algorithm.prepare(models, batch, partial(each_candidate, batch, self._budget, collective))

    def learned(self, batch: PreferenceBatch) -> None: ...

    def metrics(self, batch: PreferenceBatch) -> dict[str, float]:
        """Of the batch as a whole, beside the algorithm's."""
        return {"trained_comparisons": float(batch.num_comparisons), "trained_size": float(sum(batch.candidates.sizes))}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


def each_candidate(
    batch: PreferenceBatch, budget: int, collective: Collective, evaluate: Callable[[PreferencePart], Tensor]
) -> Tensor:
    """[N]: each process evaluates its share of the batch's parts, [n] numbers of the n candidates of one, and all get
    the whole."""
    values = torch.zeros(batch.num_candidates, device=batch.pairs.better.device)
    with torch.no_grad():
        for comparisons in batch.parts(budget)[collective.rank :: collective.num_processes]:
            part = batch.part(comparisons)
            values[list(part.chosen)] = evaluate(part).float()
    collective.sum_(values)
    return values
