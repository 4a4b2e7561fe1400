"""A policy that is taught: what is seen is labelled by the expert whoever acts, and how often the expert acts."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rollcall.actors.control.expert import FunctionExpert, TaughtPolicy
from rollcall.actors.control.unroll import begin_shard, unroll
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_vector_env, spaces_of
from rollcall.cluster.errors import ExpertFailure
from rollcall.learners.algorithms.control.imitation.dagger_config import DAggerConfig
from tests import ROOT
from tests.experts import balances, fails, swings

CARTPOLE = EnvConfig(id="CartPole-v1")


def expert(function: Any, env: str = "CartPole-v1") -> FunctionExpert:
    shown, taken = spaces_of(EnvConfig(id=env))
    return FunctionExpert(function, name="tests:it", observation_space=shown, action_space=taken)


def unit(numpy_policy: Any, beta: float, *, version: int = 3, steps: int = 60) -> tuple[Any, list[Any]]:
    """One unit of CartPole, and the actions that the envs took."""
    learner = numpy_policy(gym.spaces.Discrete(2))
    learner.version = version
    taught = TaughtPolicy(learner, expert(balances), stored=lambda a: a, beta=lambda version: beta, greedy=True)
    group = make_vector_env(CARTPOLE, 4, seed=1)
    taken: list[Any] = []
    step = group.step
    group.step = lambda actions, active=None: (taken.append(actions.copy()), step(actions, active))[1]  # type: ignore
    shard = begin_shard(0, 0, group)
    rollout = taught.rollout(num_steps=steps, num_envs=4, seed=7, recurrent_state=None)
    found = unroll(shard, rollout, num_steps=steps, unit="fragment").steps
    group.close()
    return found, taken


def test_what_is_handed_back_is_what_the_expert_would_have_done_whoever_acted(numpy_policy: Any) -> None:
    for beta in (0.0, 0.5, 1.0):
        steps, taken = unit(numpy_policy, beta)
        wanted = [[balances(row) for row in shown] for shown in steps.observations["observation"]]
        assert steps.actions.tolist() == wanted
        assert (steps.behaviour_logprobs == 0).all()
        agreed = float((np.array(taken) == steps.actions).mean())
        assert (agreed == 1.0) == (beta == 1.0)


def test_the_expert_acts_as_often_as_beta_says(numpy_policy: Any) -> None:
    """Of 4 x 500 steps with beta 0.3: where they disagree, the share of the expert's is within four standard errors."""
    steps, taken = unit(numpy_policy, 0.3, steps=500)
    learner = numpy_policy(gym.spaces.Discrete(2))
    rollout = learner.rollout(num_steps=500, num_envs=4, seed=0, recurrent_state=None, greedy=True)
    starts = np.zeros(4, bool)
    own = [
        rollout.act({"observation": shown}, episode_starts=starts)[1].copy()
        for shown in steps.observations["observation"]
    ]
    differ = np.array(own) != steps.actions
    assert differ.sum() > 200
    share = float((np.array(taken) == steps.actions)[differ].mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / differ.sum()) ** 0.5


def test_the_same_seed_mixes_in_the_same_way(numpy_policy: Any) -> None:
    one, other = unit(numpy_policy, 0.5), unit(numpy_policy, 0.5)
    assert np.array_equal(one[1], other[1])


def test_beta_decays_with_the_learner_step_and_begins_at_one() -> None:
    for decay in (0.0, 0.5, 1.0):
        config = DAggerConfig(expert="x", beta_decay=decay)
        assert [config.beta(i) for i in (0, 1, 3)] == [1.0, decay, decay**3]


def test_an_expert_that_raises_is_named_with_its_own_line_first() -> None:
    with pytest.raises(ExpertFailure) as failed:
        expert(fails).act({"observation": np.array([[0.0, 0.0, 0.1, 0.0]])}, episode_starts=np.zeros(1, bool))
    assert failed.value.headline.startswith("expert tests:it: KeyError: 'no label for this' (")
    assert str(ROOT / "tests" / "experts.py") in failed.value.headline
    assert "\n" not in failed.value.headline


@pytest.mark.parametrize(
    ("env", "given"),
    [
        ("CartPole-v1", 2),
        ("CartPole-v1", 0.5),
        ("CartPole-v1", [0, 1]),
        ("CartPole-v1", None),
        ("CartPole-v1", "left"),
        ("Pendulum-v1", 1.0),
        ("Pendulum-v1", [np.nan]),
    ],
)
def test_an_action_that_the_env_does_not_take_is_refused(env: str, given: Any) -> None:
    shown = {"observation": np.zeros((1, 4 if env == "CartPole-v1" else 3), np.float32)}
    with pytest.raises(ExpertFailure, match=r"^expert tests:it: gave .*, and the env takes "):
        expert(lambda observation: given, env).act(shown, episode_starts=np.zeros(1, bool))


def test_a_continuous_action_beyond_its_bounds_is_cut() -> None:
    shown = {"observation": np.zeros((2, 3), np.float32)}
    for given, wanted in ((5.0, 2.0), (-9, -2.0), (0.25, 0.25)):
        _, actions = expert(lambda observation, g=given: [g], "Pendulum-v1").act(
            shown, episode_starts=np.zeros(2, bool)
        )
        assert actions.dtype == np.float32 and actions.tolist() == [[wanted], [wanted]]
    assert expert(swings, "Pendulum-v1").act(shown, episode_starts=np.zeros(2, bool))[1].shape == (2, 1)
