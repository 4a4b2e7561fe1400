"""Demonstrations as a source of batches: token sequences with a mask of what is to be imitated, in a seeded order.
Knows tokens; must never know texts or tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rollcall.cluster.loop.task_source import ShuffledRows
from rollcall.cluster.messages.records import Array, LMTrajectory
from rollcall.learners.algorithm import Algorithm, Models
from rollcall.learners.batches.token_batch import TokenBatch, collate_samples
from rollcall.learners.loop.collective import Collective


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


class DemonstrationExperience:
    """What the learner asks of its experience, for demonstrations."""

    def collate(self, items: Sequence[Demonstration], device: torch.device, *, step: int) -> TokenBatch:
        return collate_samples([_as_trajectory(items)], step=step).to(device)

    def prepare(self, algorithm: Algorithm, models: Models, batch: TokenBatch, collective: Collective) -> Any:
        return algorithm.prepare(models, batch)

    def learned(self, batch: TokenBatch) -> None: ...

    def metrics(self, batch: TokenBatch) -> dict[str, float]:
        return {"trained_tokens": float(batch.num_sampled)}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


def _as_trajectory(items: Sequence[Demonstration]) -> LMTrajectory:
    """A batch of demonstrations looks like samples of a policy, without rewards."""
    token_ids = np.concatenate([item.token_ids for item in items])
    imitated = np.concatenate([item.imitated for item in items])
    return LMTrajectory(
        policy_id="demonstrator",
        epoch=0,
        ticket_id=0,
        attempt=1,
        actor_id="",
        row=0,
        sample_offsets=np.concatenate([[0], np.cumsum([len(item.token_ids) for item in items])]).astype(np.int64),
        token_ids=token_ids,
        loss_mask=imitated,
        behaviour_logprobs=np.zeros(len(token_ids), np.float32),
        version_spans=np.array([(0, len(token_ids), 0)], np.int64),
        rewards=np.zeros(len(items), np.float32),
        finish_reasons=("stop",) * len(items),
    )
