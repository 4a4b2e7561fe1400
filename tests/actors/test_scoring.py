"""Segments to the reward service and back: every step's reward is the service's own, and none is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rollcall.actors.trajectory_scoring import SegmentScoring, TrajectoryScorer
from rollcall.cluster.errors import Unscored
from rollcall.cluster.messages.attempt import Header, Produced, Timing
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.steps import EnvSteps, Unroll
from rollcall.reward_service.protocol import ItemError, ItemResult, ScoreItem, ScoreResponse

STEPS, ENVS = 5, 3


class ScriptedService:
    """Scores a step by its first observation; gives one item an error, or no step scores, where it is told to."""

    def __init__(self, *, error: str | tuple[str, ...] = "", whole_only: bool = False) -> None:
        self.error, self.whole_only = error, whole_only
        self.asked: list[ScoreItem] = []

    def score_group(self, items: Sequence[ScoreItem], *, model: str | None, deadline_s: float) -> ScoreResponse:
        self.asked += items
        results = tuple(self._result(item) for item in items)
        return ScoreResponse(request_id="r", model=model or "", model_version="v7", results=results)

    def _result(self, item: ScoreItem) -> ItemResult:
        if item.id.endswith(self.error) and self.error:
            return ItemResult(id=item.id, error=ItemError(kind="scorer_failed", message="it raised"))
        assert item.segment is not None
        scores = item.segment.observations.array()[:, 0] * 10
        steps = None if self.whole_only else tuple(scores.tolist())
        components = {"first": float(scores.mean()), "one": 1.0}
        return ItemResult(id=item.id, score=float(scores.sum()), step_scores=steps, components=components)


def produced_and_trajectory() -> tuple[Produced, GymTrajectory]:
    rng = np.random.default_rng(0)
    flags = np.zeros((STEPS, ENVS), bool)
    trajectory = GymTrajectory(
        header=Header(ticket_id=4, attempt=1, epoch=1, policy_id="policy", actor_id="gym-0"),
        shard=0,
        incarnation=0,
        policy_version=2,
        unroll=Unroll(
            steps=EnvSteps(
                observations={"observation": rng.normal(size=(STEPS, ENVS, 4)).astype(np.float32)},
                actions=rng.integers(0, 2, (STEPS, ENVS)),
                behaviour_logprobs=np.zeros((STEPS, ENVS), np.float32),
                rewards=np.ones((STEPS, ENVS), np.float32),
                terminated=flags,
                truncated=flags,
                mask=~flags,
                episode_starts=flags,
            ),
            last_observations={"observation": np.zeros((ENVS, 4), np.float32)},
            final_index=np.zeros((0, 2), np.int64),
            final_observations={"observation": np.zeros((0, 4), np.float32)},
        ),
    )
    return Produced(trajectory.header, 2, 0, Timing(), num_steps=STEPS * ENVS), trajectory


def scorer(service: ScriptedService) -> TrajectoryScorer:
    return TrajectoryScorer(service, SegmentScoring(lambda actions: actions), model="reward", patience_s=5)


def test_each_steps_reward_is_the_services_and_the_version_is_recorded() -> None:
    produced, trajectory = produced_and_trajectory()
    scored, rewarded = scorer(service := ScriptedService()).score(produced, trajectory)
    expected = trajectory.steps.observations["observation"][:, :, 0] * 10
    np.testing.assert_allclose(rewarded.steps.rewards, expected, rtol=1e-6)
    assert scored.scoring is not None
    assert rewarded.reward_model_version == scored.scoring.model_version == "v7"
    assert scored.scoring.reward_mean == pytest.approx(expected.mean(), rel=1e-5)
    assert len(service.asked) == ENVS
    segment = service.asked[1].segment
    assert segment is not None
    np.testing.assert_array_equal(segment.actions.array(), trajectory.steps.actions[:, 1])
    assert trajectory.steps.rewards.sum() == STEPS * ENVS  # the old record stays what it was
    assert rewarded.digest() != trajectory.digest()


def test_components_are_means_over_steps_and_not_over_segments() -> None:
    produced, trajectory = produced_and_trajectory()
    mask = trajectory.steps.mask.copy()
    mask[1:, 0] = False  # a segment of one step beside two of five
    unroll = replace(trajectory.unroll, steps=replace(trajectory.steps, mask=mask))
    scored, _ = scorer(ScriptedService()).score(produced, replace(trajectory, unroll=unroll))
    assert scored.scoring is not None
    expected = (trajectory.steps.observations["observation"][:, :, 0] * 10)[mask].mean()
    assert scored.scoring.components == {"first": pytest.approx(expected, rel=1e-5), "one": pytest.approx(1.0)}


def test_a_step_that_is_no_experience_has_no_reward() -> None:
    produced, trajectory = produced_and_trajectory()
    mask = trajectory.steps.mask.copy()
    mask[2, 1] = False
    _, rewarded = scorer(ScriptedService()).score(
        produced, replace(trajectory, unroll=replace(trajectory.unroll, steps=replace(trajectory.steps, mask=mask)))
    )
    assert rewarded.steps.rewards[2, 1] == 0
    assert (rewarded.steps.rewards != 0).sum() == STEPS * ENVS - 1


def test_one_item_without_a_score_leaves_the_whole_trajectory_unscored() -> None:
    produced, trajectory = produced_and_trajectory()
    with pytest.raises(Unscored, match=r"item 4\.2\.0: scorer_failed: it raised") as unscored:
        scorer(ScriptedService(error=".2.0")).score(produced, trajectory)
    assert not unscored.value.fruitless
    with pytest.raises(Unscored) as unscored:
        scorer(ScriptedService(error=tuple("0123456789"))).score(produced, trajectory)
    assert unscored.value.fruitless


def test_a_score_of_the_whole_segment_is_no_reward_of_its_steps() -> None:
    produced, trajectory = produced_and_trajectory()
    with pytest.raises(Unscored, match="none for each of its steps"):
        scorer(ScriptedService(whole_only=True)).score(produced, trajectory)
