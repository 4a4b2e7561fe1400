"""Between the learner, which does not know what it learns from, and language experience: trajectories (or, in a warm
start, demonstrations) become a batch of tokens, and passes over it are shared among the learner's processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.learners.algorithm import Algorithm, Models
from rollcall.learners.batches.token_batch import TokenBatch, TokenRows, collate_samples, each_token
from rollcall.learners.loop.collective import Collective
from rollcall.learners.models.prompt_sharing import Sharing


class LanguageExperience:
    """What the learner asks of its experience, for language trajectories."""

    def __init__(self, *, token_budget: int, hidden_size: int | None = None) -> None:
        """`hidden_size`: of the models, where all of them can compute a prompt once for several samples."""
        self._token_budget = token_budget
        self._sharing = None if hidden_size is None else Sharing(hidden_size, max_row=token_budget)

    def collate(self, trajectories: Sequence[LMTrajectory], device: torch.device, *, step: int) -> TokenBatch:
        return collate_samples(trajectories, step=step, sharing=self._sharing).to(device)

    def prepare(self, algorithm: Algorithm, models: Models, batch: TokenBatch, collective: Collective) -> Any:
        return algorithm.prepare(models, batch, partial(self._each_token, batch, collective))  # type: ignore[call-arg]

    def learned(self, batch: TokenBatch) -> None:
        """Nothing but the weights changes."""

    def metrics(self, batch: TokenBatch) -> dict[str, float]:
        """Of the batch as a whole, beside the algorithm's."""
        parts = batch.micro_batches(range(batch.num_samples), self._token_budget)
        return {"padding_fraction": batch.padding_fraction(parts), "trained_tokens": float(batch.num_sampled)}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...

    def _each_token(self, batch: TokenBatch, collective: Collective, evaluate: Callable[[TokenRows], Tensor]) -> Tensor:
        """[S]: each process evaluates its share of the batch, and all get the whole."""
        values = each_token(
            batch,
            evaluate,
            token_budget=self._token_budget,
            rank=collective.rank,
            num_processes=collective.num_processes,
        )
        collective.sum_(values)
        return values
