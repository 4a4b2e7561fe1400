"""Demonstrations as a source of batches: token sequences with a mask of what is to be imitated, in a seeded order.
Knows tokens; must never know texts or tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rollcall.cluster.loop.task_source import ShuffledRows
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.batches.token_batch import TokenBatch, TokenSample, collate_tokens
from rollcall.learners.loop.collator import Stateless


@dataclass(frozen=True)
class Demonstration:
    """One sequence. Arrays are [n]."""

    token_ids: Array  # int32
    imitated: Array  # bool: the demonstrator's own tokens


class DemonstrationSource:
    """A BatchSource: batches of demonstrations, each once per pass, every pass in an order of its own."""

    def __init__(self, demonstrations: Sequence[Demonstration], *, batch_size: int, steps: int, seed: int) -> None:
        self._demonstrations = demonstrations
        self._order = ShuffledRows(range(len(demonstrations)), seed=seed)
        self._batch_size = batch_size
        self._steps = steps

    def take(self, step: int) -> list[Demonstration] | None:
        if step >= self._steps:
            return None
        positions = range(step * self._batch_size, (step + 1) * self._batch_size)
        return [self._demonstrations[self._order.row(position)[0]] for position in positions]


class DemonstrationCollator(Stateless):
    """A Collator of demonstrations."""

    def collate(self, items: Sequence[Demonstration], device: torch.device, *, step: int) -> TokenBatch:
        return collate_tokens([_sample(item) for item in items], step=step).to(device)

    def metrics(self, batch: TokenBatch) -> dict[str, float]:
        return {"trained_tokens": float(batch.num_sampled)}


def _sample(item: Demonstration) -> TokenSample:
    """As if a policy had sampled what is imitated."""
    nothing = np.zeros(len(item.token_ids), np.float32)
    return TokenSample(item.token_ids, item.imitated, SampledTokens(nothing), versions=nothing.astype(np.int64))
