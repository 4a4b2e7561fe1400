"""How language trajectories become a batch of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.learners.batches.placement import PADDED, Layout
from rollcall.learners.batches.token_batch import TokenBatch, collate_samples
from rollcall.learners.collators.collator import Stateless
from rollcall.learners.collators.demonstrations import DemonstrationCollator
from rollcall.learners.data.demonstrations import Demonstration


class LanguageCollator(Stateless):
    """A Collator of language trajectories."""

    def __init__(
        self,
        *,
        token_budget: int,
        layout: Layout = PADDED,
        beside: Callable[[int], Sequence[Demonstration]] = lambda step: (),
    ) -> None:
        """`layout`: one that all the models can compute. `beside`: what is imitated beside the samples of a step, the
        same whenever it is asked."""
        self._token_budget = token_budget
        self._layout = layout
        self._beside = beside

    def collate(self, trajectories: Sequence[LMTrajectory], device: torch.device, *, step: int) -> TokenBatch:
        batch = collate_samples(trajectories, step=step, layout=self._layout)
        if shown := self._beside(step):
            supervised = DemonstrationCollator(self._layout).collate(shown, torch.device("cpu"), step=step)
            batch = replace(batch, supervised=supervised)
        return batch.to(device)

    def metrics(self, batch: TokenBatch) -> dict[str, float]:
        """Of the batch as a whole, beside the algorithm's."""
        parts = batch.micro_batches(range(batch.num_samples), self._token_budget)
        return {"padding_fraction": batch.padding_fraction(parts), "trained_tokens": float(batch.num_sampled)}
