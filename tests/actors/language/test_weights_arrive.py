"""Whether an engine notices, in the step in which it happens, that a tensor of the smallest update did not arrive or
arrived in another's place: by each way that weights come, in single and in half precision."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.actors.engine import vllm_weight_transfer
from rollcall.actors.engine.checkpoint_names import CheckpointNames
from rollcall.actors.engine.published_weights import published_model
from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.cluster.errors import EngineMismatch
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import Canary, Weights, as_torch, pack_weights
from rollcall.learners.loop.canary import canary, with_fingerprints
from tests.actors.language.conftest import ENGINE, Trainer

HALF = {"dtype": "bfloat16", "enforce_eager": True}
LEARNING_RATE = 1e-6  # what one step of Adam moves a weight by
PREFIX = "policy.model."
Way = Callable[[VllmEngine, Weights], None]
Changes = Callable[[dict[str, Array]], None]


@dataclass(frozen=True)
class Offer:
    """Sends weights as vLLM's own trainers do, by control calls, to our transfer engine."""

    weights: Weights
    names: CheckpointNames
    epoch: int = 1
    version: int = 1

    def accept(self, control: Callable[[str, Mapping[str, Any]], None]) -> tuple[int, int, Canary | None]:
        vllm_weight_transfer._incoming = self.names.tensors(published_model(self.weights))
        control("start_weight_update", {})
        control("update_weights", {"update_info": {}})
        control("finish_weight_update", {})
        return 1, self.weights.version, self.weights.canary


@pytest.fixture(params=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest, engine_of: Any) -> VllmEngine:
    engine = engine_of("untied") if request.param == "float32" else engine_of("untied", **HALF)
    assert isinstance(engine, VllmEngine)
    return engine


@pytest.fixture(params=["load", "receive"])
def bring(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Way:
    names = CheckpointNames(directories["untied"])
    if request.param == "load":
        return lambda engine, weights: engine.load(weights)
    return lambda engine, weights: void(engine.receive(Offer(weights, names)))


def void(_: object) -> None: ...


def as_published(trainer: Trainer, version: int, dtype: str, changes: Changes = lambda _: None) -> Weights:
    """The trainer's weights; and then something happens to them on their way."""
    weights = trainer.weights(version)
    said = canary(trainer.policy, room=ENGINE.max_model_len, dtype="float32")
    said = with_fingerprints(said, as_torch(weights), dtype)
    tensors = {name: array.copy() for name, array in weights.tensors()}
    changes(tensors)
    return replace(pack_weights("policy", 1, version, tensors), canary=said)


def rounded(array: Array, dtype: str) -> torch.Tensor:
    return torch.from_numpy(array.copy()).to(getattr(torch, dtype))


def test_the_update_of_any_one_tensor_that_is_withheld_is_noticed_and_named(
    engine: VllmEngine, bring: Way, trainer_of: Any
) -> None:
    trainer, dtype = trainer_of("untied"), engine.dtype
    bring(engine, as_published(trainer, 0, dtype))
    before = dict(trainer.weights(0).tensors())
    before = {name: array.copy() for name, array in before.items()}
    trainer.move(LEARNING_RATE)
    moved = 0
    for name, new in trainer.weights(1).tensors():

        def withhold(tensors: dict[str, Array], name: str = name) -> None:
            tensors[name] = before[name]

        damaged = as_published(trainer, 1, dtype, withhold)
        if torch.equal(rounded(before[name], dtype), rounded(new, dtype)):  # the step is lost in rounding
            bring(engine, damaged)
            continue
        moved += 1
        with pytest.raises(EngineMismatch, match="policy version 1") as caught:
            bring(engine, damaged)
        parts = {"q_proj": "q_proj", "k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
        part = name.removeprefix(PREFIX)
        fused = next((part.replace(own, first) for own, first in parts.items() if own in part), part)
        assert part in str(caught.value) or fused in str(caught.value), "or the first of those it is fused with"
        assert "\n" not in str(caught.value)
    assert moved > (20 if dtype == "float32" else 10)
    bring(engine, as_published(trainer, 1, dtype))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("layers.0.self_attn.k_proj", "layers.0.self_attn.v_proj"),  # of one parameter of the engine
        ("layers.0.mlp.gate_proj", "layers.0.mlp.up_proj"),
        ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"),
        ("layers.0.input_layernorm", "layers.1.post_attention_layernorm"),
        ("embed_tokens", "lm_head"),
    ],
)
def test_two_tensors_that_are_swapped_are_noticed(
    engine: VllmEngine, bring: Way, trainer_of: Any, one: str, other: str
) -> None:
    trainer, dtype = trainer_of("untied"), engine.dtype
    bring(engine, as_published(trainer, 0, dtype))
    trainer.move(LEARNING_RATE)

    def swap(tensors: dict[str, Array]) -> None:
        a, b = (f"{PREFIX}{'' if name == 'lm_head' else 'model.'}{name}.weight" for name in (one, other))
        tensors[a], tensors[b] = tensors[b], tensors[a]

    with pytest.raises(EngineMismatch, match="policy version 1"):
        bring(engine, as_published(trainer, 1, dtype, swap))
    bring(engine, as_published(trainer, 1, dtype))


def test_what_rounding_loses_is_no_mismatch(engine: VllmEngine, bring: Way, trainer_of: Any) -> None:
    trainer = trainer_of("untied")
    for version in range(3):
        bring(engine, as_published(trainer, version, engine.dtype))
        assert engine.version == version
        trainer.move(0.01)


def test_what_runs_meanwhile_goes_on(engine: VllmEngine, trainer_of: Any) -> None:
    """All seats are taken and others wait: the check takes one step, with a seat of its own."""
    trainer = trainer_of("untied")
    engine.load(as_published(trainer, 0, engine.dtype))
    for index in range(2 * ENGINE.max_num_seqs):
        engine.add(str(index), [2, 3], seed=index, max_tokens=10)
    finished = {item.request_id: item for _ in range(3) for item in engine.step()}
    engine.load(as_published(trainer, 1, engine.dtype))
    while engine.num_unfinished:
        finished |= {item.request_id: item for item in engine.step()}
    assert sorted(finished, key=int) == [str(index) for index in range(2 * ENGINE.max_num_seqs)]
    assert all(len(item.token_ids) <= 10 for item in finished.values())
    spans = [item.version_spans for item in finished.values() if len(item.version_spans) == 2]
    assert spans and all(version == (0, 1)[row] for item in spans for row, (_, _, version) in enumerate(item))
    assert max(begin for item in spans for begin, _, version in item if version == 1) == 3
    assert np.isfinite(np.concatenate([item.logprobs for item in finished.values()])).all()


def test_what_was_begun_ahead_belongs_to_the_weights_that_it_began_with(
    engine: VllmEngine, trainer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With vLLM's queue of steps under way, as `async_scheduling` has it on a GPU."""
    core: Any = engine._core.engine_core
    monkeypatch.setattr(core, "batch_queue", deque(maxlen=2))
    monkeypatch.setattr(core, "batch_queue_size", 2)
    monkeypatch.setattr(core, "step_fn", core.step_with_batch_queue)
    trainer = trainer_of("untied")
    engine.load(as_published(trainer, 0, engine.dtype))
    engine.add("a", [2, 3], seed=0, max_tokens=6)
    assert engine.step() == [] and len(core.batch_queue) == 1, "computed, and not yet taken"
    engine.load(as_published(trainer, 1, engine.dtype))
    finished: list[Any] = []
    while engine.num_unfinished:
        finished += engine.step()
    assert finished[0].version_spans[0] == (0, 1, 0) and finished[0].version_spans[1][0::2] == (1, 1)
    engine._settle()
    assert not core.batch_queue
