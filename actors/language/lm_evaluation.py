"""Evaluation of a language policy: one answer to each held-out row, under frozen weights, on an engine of its own.
Knows nothing of training."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.actors.language.conversations import Conversations, Sample
from rollcall.actors.language.lm_eval_config import LMEvalConfig
from rollcall.actors.tasks.text_task import Row
from rollcall.cluster.messages.reports import EvalReport
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed


class LMEvaluator:
    """Answers held-out rows with weights that it is given."""

    def __init__(self, engine: VllmEngine, conversations: Conversations, rows: Sequence[Row], config: LMEvalConfig):
        self._engine = engine
        self._conversations = conversations
        self._rows = rows
        self._config = config

    def evaluate(self, weights: Weights, episodes: int | None = None, seed: int | None = None) -> EvalReport:
        """Answers the first `episodes` held-out rows, or as many as there are. The same number of rows gives the same
        answers; with another, an answer may tip where two tokens are equally likely to the last bits, since the
        engine's batches are others.

        Raises:
          ValueError: for none.
        """
        wanted = self._config.num_rows if episodes is None else episodes
        rows = self._rows[:wanted]
        if not rows:
            raise ValueError(f"episodes={wanted} of {len(self._rows)} held-out rows: an evaluation needs at least one")
        seed = self._config.seed if seed is None else seed
        self._engine.load(weights)
        for index, row in enumerate(rows):
            self._conversations.begin(index, row, seed=derive_seed(seed, "eval", index))
        finished: dict[Hashable, Sample] = {}
        while self._conversations.num_running:
            finished |= {sample.key: sample for sample in self._conversations.advance()}
        samples = [finished[index] for index in range(len(rows))]
        judged = [sample.judgement for sample in samples if sample.judgement is not None]
        measured = [float(judgement.correct) for judgement in judged]
        if self._config.measure == "reward":
            measured = [sample.reward for sample in samples]
        return EvalReport(
            unit="exact match" if self._config.measure == "correct" else "reward",
            mean=float(np.mean(measured)),
            std=float(np.std(measured)),
            n=len(rows),
            returns=tuple(sample.reward for sample in samples),
            lengths=tuple(sample.num_sampled for sample in samples),
            unparsed=sum(not judgement.parsed for judgement in judged),
            policy_version=weights.version,
        )

    def close(self) -> None:
        self._engine.close()
