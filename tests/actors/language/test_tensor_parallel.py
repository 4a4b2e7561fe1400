"""An engine whose model is cut across two processes: it says what one process says, and every tensor of an update is
seen to arrive, however it is cut or copied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.cluster.errors import EngineMismatch
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import Weights, as_torch, pack_weights
from rollcall.learners.loop.canary import canary, with_fingerprints
from tests.actors.language.conftest import ENGINE, Trainer, run_all


@pytest.fixture
def engine(engine_of: Any) -> VllmEngine:
    engine: VllmEngine = engine_of("untied", tensor_parallel_size=2, enforce_eager=True)
    return engine


def published(trainer: Trainer, version: int, **changed: Array) -> Weights:
    weights = trainer.weights(version)
    said = canary(trainer.policy, room=ENGINE.max_model_len, dtype="float32")
    said = with_fingerprints(said, as_torch(weights), "float32")
    return replace(pack_weights("policy", 1, version, dict(weights.tensors()) | changed), canary=said)


def test_an_engine_of_two_processes_takes_weights_whole_and_says_what_the_learner_says(
    engine: VllmEngine, trainer_of: Any
) -> None:
    trainer = trainer_of("untied")
    engine.load(published(trainer, 0))
    weights = engine._weights
    assert weights._places is not None and not weights._places.unknown
    trainer.move(1e-6)
    right = published(trainer, 1)
    before = {name: array.copy() for name, array in right.tensors()}
    trainer.move(1e-6)
    for name, old in before.items():  # whichever it is: cut by rows, by columns, or copied to both
        with pytest.raises(EngineMismatch, match="policy version 2"):
            engine.load(published(trainer, 2, **{name: old}))
    engine.load(published(trainer, 2))
    for index in range(6):
        engine.add(str(index), [2, 3, 4], seed=index, max_tokens=12)
    finished = run_all(engine)
    said = trainer.says(
        [([2, 3, 4, *c.token_ids.tolist()], [False] * 3 + [True] * len(c.token_ids)) for c in finished.values()]
    )
    found = np.concatenate([item.logprobs for item in finished.values()])
    inside = ~said.outside.numpy().astype(bool) & (said.edge.numpy() > 1e-4)
    assert inside.sum() > 20
    np.testing.assert_allclose(found[inside], said.logprobs.detach().numpy()[inside], atol=1e-4)
