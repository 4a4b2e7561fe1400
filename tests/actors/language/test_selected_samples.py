"""The sampler of `rollcall select` on a real engine: an actor that answers each prompt once, whatever becomes of its
scores. Scorers that fail are faults put in by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.actors.language.conversations import Conversations
from rollcall.actors.language.lm_actor import LMActor
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.arithmetic import Arithmetic
from rollcall.actors.trajectory_scoring import TextScoring, TrajectoryScorer
from rollcall.cluster.errors import RollcallError
from rollcall.deploy.kinds.selection.completions import Answered
from rollcall.deploy.kinds.selection.sampler import ActorSampler, FrozenWeights
from rollcall.reward_service.protocol import ItemError, ItemResult, ScoreItem, ScoreResponse
from tests.actors.language.conftest import Trainer


class Scores:
    """A reward service's client: by the length of the response, and an error for prompts of `failing`."""

    def __init__(self, failing: str = "nothing") -> None:
        self.failing = failing
        self.hangs = threading.Event()
        self.hangs.set()

    def score_group(self, items: Sequence[ScoreItem], *, model: str | None, deadline_s: float) -> ScoreResponse:
        assert self.hangs.wait(30)
        results = [self._result(item) for item in items]
        return ScoreResponse(request_id="1", model="m", model_version="v7", results=tuple(results))

    def _result(self, item: ScoreItem) -> ItemResult:
        assert item.prompt is not None and item.response is not None
        if self.failing in item.prompt:
            return ItemResult(id=item.id, error=ItemError(kind="scorer_failed", message="no idea\nTraceback ..."))
        return ItemResult(id=item.id, score=float(len(item.response)))


@pytest.fixture
def sampler_of(
    engine: VllmEngine, trainer: Trainer, codec: TextCodec, arithmetic: Arithmetic
) -> Callable[..., ActorSampler]:
    def make(client: Scores | None = None, **settings: Any) -> ActorSampler:
        source, rows = FrozenWeights(trainer.weights(3, epoch=0)), arithmetic.rows("train")
        actor = LMActor(
            actor_id="lm-0",
            engine=engine,
            conversations=Conversations(engine, arithmetic, codec, max_tokens=12),
            rows=rows,
            weights_source=source,
        )
        texts = TextScoring(arithmetic, codec, rows)
        scorer = None if client is None else TrajectoryScorer(client, texts, model="m", patience_s=5.0)
        given = {"num_samples": 3, "seed": 5, "deadline_s": 100.0, "at_once": 6, **settings}
        return ActorSampler(actor=actor, source=source, rows=rows, texts=texts, scorer=scorer, **given)

    return make


def answers(sampler: ActorSampler, rows: Sequence[int]) -> dict[int, Answered]:
    found: dict[int, Answered] = {}
    for item in sampler.answers(rows, stop_requested=lambda: False):
        assert item.row not in found
        found[item.row] = item
    return found


def test_each_row_is_answered_once_and_its_answers_do_not_depend_on_what_else_is_asked(
    sampler_of: Callable[..., ActorSampler], arithmetic: Arithmetic
) -> None:
    rows = [11, 3, 29, 4, 0, 17, 8, 40]
    all_at_once, alone = answers(sampler_of(), rows), answers(sampler_of(at_once=2), [29, 40])
    assert all_at_once.keys() == set(rows)
    assert alone[29] == all_at_once[29] and alone[40] == all_at_once[40]
    item = all_at_once[3]
    row = arithmetic.rows("train")[3]
    assert (item.prompt, item.source, item.scorer, item.policy_version) == (row.prompt, row.source, "task", 3)
    assert len(item.completions) == 3 and len({c.text for i in all_at_once.values() for c in i.completions}) > 3
    for completion in item.completions:
        assert completion.score == arithmetic.judge(row, completion.text).reward
        assert completion.finish_reason == "stop" or completion.num_tokens == 12
    other = answers(sampler_of(seed=6), [3])[3]
    assert other.completions != item.completions, "another seed, other samples"


def test_what_the_service_scores_counts_and_a_prompt_that_it_fails_at_is_left_out_and_said(
    sampler_of: Callable[..., ActorSampler], arithmetic: Arithmetic
) -> None:
    rows = list(range(12))
    failing = [row for row in rows if "+1" in arithmetic.rows("train")[row].prompt]
    assert 0 < len(failing) < 12
    sampler = sampler_of(Scores("+1"))
    found = answers(sampler, rows)
    assert found.keys() == set(rows) - set(failing)
    for item in found.values():
        assert item.scorer == "v7"
        assert [c.score for c in item.completions] == [float(len(c.text)) for c in item.completions]
    assert len(sampler.unscored) == len(failing) and "no idea" in sampler.unscored[0]
    assert "Traceback" not in sampler.unscored[0]


def test_a_scorer_that_scores_nothing_ends_it_in_one_line(sampler_of: Callable[..., ActorSampler]) -> None:
    with pytest.raises(RollcallError, match=r"^10 prompts in a row have no score: .*no idea$"):
        answers(sampler_of(Scores("")), range(40))


def test_a_prompt_that_is_not_finished_in_time_is_tried_again_and_then_named(
    sampler_of: Callable[..., ActorSampler],
) -> None:
    with pytest.raises(RollcallError, match=r"arithmetic \d+: .* 3 times: raise actors.ticket_deadline_s"):
        answers(sampler_of(deadline_s=1e-6), [0])


def test_a_stop_waits_for_no_scorer_that_hangs(sampler_of: Callable[..., ActorSampler]) -> None:
    client = Scores()
    client.hangs.clear()
    stop, began = threading.Event(), time.monotonic()
    threading.Timer(1.0, stop.set).start()
    sampler = replace(sampler_of(client), at_once=4)
    assert list(sampler.answers(range(20), stop_requested=stop.is_set)) == []
    assert time.monotonic() - began < 20
    client.hangs.set()
