"""What a scorer and a rater are told of a control run: the actions that its envs took, and one episode at a time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.actors.trajectory_scoring import RewardEndpoint, TrajectoryScorer
from rollcall.cluster.messages.attempt import Header, ShardPayload, Ticket
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.kinds.control import factory as control_factory
from rollcall.deploy.kinds.control.compared_segments import segments_of
from rollcall.deploy.kinds.control.factory import ControlFactory
from rollcall.deploy.kinds.recipes import load_config
from rollcall.learners.collective import Collective
from rollcall.learners.maths.distributions import distribution_for
from rollcall.reward_service.protocol import ItemResult, ScoreItem, ScoreResponse

START = 99.0  # what is seen at an episode's first step

ECHO = f"""
    import gymnasium as gym
    import numpy as np
    from gymnasium import spaces

    SPACES = {{
        "clipped": spaces.Box(-0.1, 0.1, (1,), np.float32),
        "square": spaces.Box(-0.5, 0.25, (2, 2), np.float32),
        "double": spaces.Box(-2.0, 2.0, (2,), np.float64),
        "half": spaces.Box(-0.5, 0.5, (2,), np.float16),
        "from 3": spaces.Discrete(4, start=3),
        "from -1": spaces.Discrete(3, start=-1),
        "several": spaces.MultiDiscrete([3, 2], start=[1, -2]),
    }}

    class Echo(gym.Env):
        '''Shows the action that it has just taken. Its episodes have 5 steps.'''

        def __init__(self, kind):
            self.action_space = SPACES[kind]
            size = int(np.prod(self.action_space.shape or (1,)))
            self.observation_space = spaces.Box(-100, 100, (size,), np.float64)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.steps = 0
            return np.full(self.observation_space.shape, {START}), {{}}

        def step(self, action):
            assert self.action_space.contains(action if self.action_space.shape else int(action))
            self.steps += 1
            seen = np.asarray(action, np.float64).reshape(-1)
            return seen, 1.0, self.steps == 5, False, {{}}
"""


class Service:
    """Keeps what it is asked, and gives the k-th step of a segment the score k."""

    def __init__(self) -> None:
        self.asked: list[ScoreItem] = []

    def score_group(self, items: Sequence[ScoreItem], *, model: str | None, deadline_s: float) -> ScoreResponse:
        self.asked += items
        scores = [tuple(map(float, range(item.segment.num_steps))) for item in items if item.segment is not None]
        results = tuple(ItemResult(id=i.id, score=sum(s), step_scores=s) for i, s in zip(items, scores, strict=True))
        return ScoreResponse(request_id="r", model="reward", model_version="v1", results=results)


class OneVersion:
    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def latest(self, **_: Any) -> Weights:
        return self._weights


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(trajectory of a unit, its rewards by the service, what the service was asked, parts)"""
    (tmp_path / "echo_env.py").write_text(textwrap.dedent(ECHO))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    service = Service()
    monkeypatch.setattr(
        control_factory, "scorer_of", lambda _, kind: TrajectoryScorer(service, kind, model="reward", patience_s=5)
    )

    def run(kind: str, *overrides: str) -> tuple[GymTrajectory, GymTrajectory, list[ScoreItem], ControlFactory]:
        settings = [f"env.kwargs.kind={kind}", "env.vectorization=sync", "env=echo_env:Echo", "actors.num_envs=3"]
        sizes = ["actors.num_shards=1", "actors.unroll_length=17", "total_env_steps=1000", "reward=math:fsum"]
        config = load_config("cartpole-ppo", [*reversed(settings), *sizes, *overrides])
        assert isinstance(config, RunConfig)
        parts = ControlFactory(config, tmp_path).with_reward(RewardEndpoint("http://x", "", "r", 5))
        weights = parts.learner(Collective()).weights(epoch=1, version=0)
        actor = parts.actor("gym-0", OneVersion(weights))  # type: ignore[arg-type]
        ticket = Ticket(Header(0, 1, 1), 7, 0, 0, ShardPayload(0, 0, "fragment"), 60.0)
        produced, trajectory = actor.produce(ticket)
        assert isinstance(trajectory, GymTrajectory)
        _, scored = parts.scorer().score(produced, trajectory)
        return trajectory, scored, service.asked, parts

    return run


@pytest.mark.parametrize(
    ("kind", "squash"),
    [
        *((kind, "clip") for kind in ("clipped", "square", "double", "half", "from 3", "from -1", "several")),
        ("clipped", "tanh"),
    ],
)
def test_a_scorer_and_a_rater_see_the_actions_that_the_env_took(echo: Any, kind: str, squash: str) -> None:
    trajectory, _, asked, parts = echo(kind, f"policy.squash={squash}")
    stretches = list(segments_of(trajectory, 3, distribution_for(parts.spaces[1], squash).to_env))  # type: ignore[arg-type]
    assert len(asked) >= 9 and len(stretches) >= 6
    for segment in [*(item.segment for item in asked), *stretches]:
        seen = segment.observations.array()
        done = segment.actions.array().reshape(len(seen), -1)
        assert segment.actions.shape[1:] == parts.spaces[1].shape
        np.testing.assert_array_equal(seen[1:], done[:-1])


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_no_segment_crosses_an_episodes_end_and_every_step_of_experience_has_one_score(
    echo: Any, autoreset: str
) -> None:
    """A step's score is its place in its episode's stretch: one that followed an end would count on from before it."""
    trajectory, scored, asked, _ = echo("from 3", f"env.autoreset={autoreset}")
    for item in asked:
        seen = item.segment.observations.array()[:, 0]
        assert item.segment.num_steps <= 5
        assert START not in seen[1:]
    assert sum(item.segment.num_steps for item in asked) == trajectory.steps.mask.sum()
    first = trajectory.steps.observations["observation"][:, :, 0] == START
    assert (scored.steps.rewards[first & trajectory.steps.mask] == 0).all()
    assert set(np.unique(scored.steps.rewards)) == {0, 1, 2, 3, 4}
    assert (scored.steps.rewards[~trajectory.steps.mask] == 0).all()
    ended = scored.steps.terminated[:-1] & trajectory.steps.mask[1:]
    assert (scored.steps.rewards[1:][ended] == 0).all()


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_a_scorer_sees_what_the_last_action_led_to_at_an_episodes_end_and_at_a_units_border(
    echo: Any, autoreset: str
) -> None:
    """This env shows the action that it has just taken, and after 5 of them it terminates."""
    _, _, asked, _ = echo("several", f"env.autoreset={autoreset}", "actors.unroll_length=16")
    ends = set()
    for item in asked:
        segment = item.segment
        np.testing.assert_array_equal(segment.last_observation.array()[0], segment.actions.array()[-1].reshape(-1))
        assert segment.terminated == (segment.num_steps == 5)
        ends.add(segment.terminated)
    assert ends == {True, False}


def test_a_unit_without_experience_is_passed_on_and_asked_about_by_nobody(echo: Any) -> None:
    from dataclasses import replace

    trajectory, _, asked, parts = echo("from 3")
    before = len(asked)
    steps = replace(trajectory.steps, mask=np.zeros_like(trajectory.steps.mask))
    nothing = replace(trajectory, unroll=replace(trajectory.unroll, steps=steps))
    produced, scored = parts.scorer().score(_produced(), nothing)
    assert len(asked) == before
    assert produced.scoring is None and not scored.steps.rewards.any() and scored.reward_model_version == ""


def _produced() -> Any:
    from rollcall.cluster.messages.attempt import Produced, Timing

    return Produced(Header(0, 1, 1, "policy", "gym-0"), 0, 0, Timing())
