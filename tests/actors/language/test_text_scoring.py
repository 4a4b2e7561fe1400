"""Completions to the reward service and back: what it is shown of each sample, and where its scores go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.arithmetic import Arithmetic, ArithmeticConfig
from rollcall.actors.trajectory_scoring import TextScoring, TrajectoryScorer
from rollcall.cluster.messages.attempt import Header, Produced, SampleStats, Timing
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.reward_service.protocol import ItemResult, ScoreItem, ScoreResponse

ANSWERS = ("46", "7", "")


class LengthService:
    """A response is worth its length."""

    def __init__(self) -> None:
        self.asked: list[ScoreItem] = []

    def score_group(self, items: Sequence[ScoreItem], *, model: str | None, deadline_s: float) -> ScoreResponse:
        self.asked += items
        results = tuple(
            ItemResult(id=item.id, score=float(len(item.response or "")), components={"length": 1.5}) for item in items
        )
        return ScoreResponse(request_id="r", model=model or "", model_version="v1", results=results)


@pytest.fixture(scope="module")
def task() -> Arithmetic:
    return Arithmetic(ArithmeticConfig(digits=2, num_eval_rows=10))


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory, task: Arithmetic) -> TextCodec:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(directory, alphabet=task.alphabet(), seed=0, hidden_size=32, num_layers=1)
    return TextCodec(directory)


def sampled(task: Arithmetic, codec: TextCodec) -> tuple[Produced, LMTrajectory]:
    """Three samples of row 5; the second has no end-of-sequence token, the third nothing else."""
    prompt = codec.encode(task.rows("train")[5].prompt)
    ends: tuple[list[int], ...] = ([codec.eos_token_id], [], [codec.eos_token_id])
    rows = [[*prompt, *codec.encode(text), *end] for text, end in zip(ANSWERS, ends, strict=True)]
    offsets = np.cumsum([0, *map(len, rows)])
    mask = np.concatenate([[False] * len(prompt) + [True] * (len(row) - len(prompt)) for row in rows])
    trajectory = LMTrajectory(
        header=Header(ticket_id=9, attempt=1, epoch=1, policy_id="policy", actor_id="lm-0"),
        row=5,
        sample_offsets=offsets,
        token_ids=np.concatenate(rows).astype(np.int32),
        loss_mask=mask,
        tokens=SampledTokens(np.zeros(len(mask), np.float32)),
        version_spans=np.array([[0, len(mask), 3]]),
        rewards=np.array([1.0, 0.0, 0.0], np.float32),
        finish_reasons=("stop", "length", "stop"),
    )
    samples = tuple(SampleStats(reward, reward == 1, True, 2, False) for reward in (1.0, 0.0, 0.0))
    return Produced(trajectory.header, 3, 0, Timing(), num_tokens=int(mask.sum()), samples=samples), trajectory


def test_each_sample_is_shown_with_its_prompt_its_text_and_what_is_known_of_the_row(
    task: Arithmetic, codec: TextCodec
) -> None:
    service = LengthService()
    rows = task.rows("train")
    scorer = TrajectoryScorer(service, TextScoring(task, codec, rows), model="reward", patience_s=5)
    scorer.score(*sampled(task, codec))
    assert [item.response for item in service.asked] == list(ANSWERS)
    assert {item.prompt for item in service.asked} == {rows[5].prompt}
    assert all(item.metadata["answer"] == rows[5].answer for item in service.asked)
    assert len({item.id for item in service.asked}) == 3


def test_the_scores_are_what_is_learnt_from_and_the_tasks_own_judgement_stays_to_be_seen(
    task: Arithmetic, codec: TextCodec
) -> None:
    kind = TextScoring(task, codec, task.rows("train"))
    produced, trajectory = TrajectoryScorer(LengthService(), kind, model="reward", patience_s=5).score(
        *sampled(task, codec)
    )
    np.testing.assert_array_equal(trajectory.rewards, [2.0, 1.0, 0.0])
    assert [sample.reward for sample in produced.samples] == [2.0, 1.0, 0.0]
    assert [sample.reward_components["task"] for sample in produced.samples] == [1.0, 0.0, 0.0]
    assert [sample.correct for sample in produced.samples] == [True, False, False]
    assert trajectory.reward_model_version == "v1" and not produced.is_degenerate


def test_a_kind_review_is_worth_more_than_an_unkind_one_and_what_is_no_review_nothing() -> None:
    from rollcall.actors.tasks.reviews import Reviews, ReviewsConfig

    reviews = Reviews(ReviewsConfig())
    row = reviews.rows("train")[0]
    judged = {
        text: reviews.judge(row, text).reward
        for text in ("start superb, end lovely, mood superb.", "start not dull, end good.", "start awful, end nasty.")
    }
    assert list(judged.values()) == [1.0, pytest.approx(8 / 12), pytest.approx(2 / 12)]
    for nonsense in ("superb superb superb.", "start superb.", "start superb, end lovely", ""):
        judgement = reviews.judge(row, nonsense)
        assert judgement.reward == 0 and not judgement.parsed
    assert all(reviews.judge(row, row.answer).parsed for row in reviews.rows("train")[:200])
