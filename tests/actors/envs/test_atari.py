"""Atari games through ale-py's vector env: standard preprocessing, and the same experience whatever resets them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.evaluation_config import EvalConfig
from rollcall.actors.control.state import is_exact
from rollcall.actors.control.unroll import UnitOfExperience, begin_shard, unroll
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env, make_vector_env, spaces_of
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.weights import pack_weights
from tests.needs import needs

pytestmark = needs("ale_py")

BREAKOUT = EnvConfig(id="ALE/Breakout-v5")


def play(config: EnvConfig, num_steps: int, numpy_policy: Any) -> UnitOfExperience:
    group = make_vector_env(config, 2, seed=3)
    policy = numpy_policy(group.action_space, gain=0.01)
    shard = begin_shard(0, 0, group)
    rollout = policy.rollout(num_steps=num_steps, num_envs=2, seed=0, recurrent_state=None, greedy=True)
    return unroll(shard, rollout, num_steps=num_steps, unit="fragment")


def lived(result: UnitOfExperience, b: int) -> list[bytes]:
    """Env b's transitions without the dead steps."""
    arrays = [
        result.steps.actions,
        result.steps.rewards,
        result.steps.terminated,
        result.steps.truncated,
        *result.steps.observations.values(),
    ]
    return [b"".join(array[t, b].tobytes() for array in arrays) for t in np.flatnonzero(result.steps.mask[:, b])]


def test_observations_are_four_grey_frames_of_84_by_84() -> None:
    observation, action = spaces_of(BREAKOUT)
    assert (observation.shape, observation.dtype) == ((4, 84, 84), np.uint8)
    assert getattr(action, "n", None) == 4
    assert spaces_of(BREAKOUT.model_copy(update={"frame_stack": 1}))[0].shape == (1, 84, 84)
    assert spaces_of(BREAKOUT.model_copy(update={"atari": False}))[0].shape == (210, 160, 3)


def test_both_autoreset_modes_give_the_same_experience(numpy_policy: Any) -> None:
    settings = {"max_episode_steps": 40}
    next_step, same_step = (
        play(BREAKOUT.model_copy(update={**settings, "autoreset": mode}), 110, numpy_policy)
        for mode in ("next_step", "same_step")
    )
    for b in range(2):
        one, other = lived(next_step, b), lived(same_step, b)
        assert len(one) < len(other) == 110
        assert one == other[: len(one)]
    assert next_step.steps.truncated.sum() >= 4
    assert not next_step.steps.terminated.any()
    both = min(len(next_step.unroll.final_index), len(same_step.unroll.final_index))
    finals = [item.unroll.final_observations["observation"][:both].tobytes() for item in (next_step, same_step)]
    assert finals[0] == finals[1]
    assert next_step.episodes[:both] == same_step.episodes[:both]


def test_a_lost_life_ends_an_episode_for_the_learner_and_not_the_game(numpy_policy: Any) -> None:
    whole = play(BREAKOUT, 250, numpy_policy)
    lives = play(BREAKOUT.model_copy(update={"episodic_life": True}), 250, numpy_policy)
    for name in ("actions", "rewards", "mask"):
        assert getattr(whole.steps, name).tobytes() == getattr(lives.steps, name).tobytes(), "the game is the same"
    assert whole.steps.observations["observation"].tobytes() == lives.steps.observations["observation"].tobytes()
    assert whole.episodes == lives.episodes, "and so is its score"
    games, ends = int(whole.steps.terminated.sum()), int(lives.steps.terminated.sum())
    assert games >= 2, "of five lives each"
    assert 5 * games <= ends <= 5 * games + 8
    assert len(lives.unroll.final_index) == ends
    assert lives.unroll.final_index.tolist() == np.argwhere(lives.steps.terminated).tolist()
    begins = lives.steps.episode_starts & ~whole.steps.episode_starts
    assert int(begins.sum()) == ends - games - int((lives.steps.terminated & ~whole.steps.terminated)[-1].sum())


def test_one_game_is_one_of_many_with_the_same_seed() -> None:
    group = make_vector_env(BREAKOUT, 3)
    env = make_env(BREAKOUT)
    shown: Any = group.reset([5, 6, 7])
    observation, _ = env.reset(seed=6)
    for t in range(60):
        assert observation.tobytes() == shown.observations["observation"][1].tobytes()
        observation, reward, *_ = env.step(t % 4)
        shown = group.step(np.full(3, t % 4))
        assert reward == shown.rewards[1]


def test_the_ids_own_settings_hold_unless_the_user_gives_others() -> None:
    """v5 repeats an action with probability 0.25: the same seed and actions then differ from those without."""
    sticky, steady = (
        make_vector_env(BREAKOUT.model_copy(update={"kwargs": kwargs}), 2, seed=1)
        for kwargs in ({}, {"repeat_action_probability": 0.0})
    )
    sticky.reset()
    steady.reset()
    same = True
    for t in range(60):
        action = np.full(2, (1, 2, 3, 3)[t % 4])
        one, other = sticky.step(action), steady.step(action)
        same &= one.observations["observation"].tobytes() == other.observations["observation"].tobytes()
    assert not same


def test_settings_that_have_a_name_of_their_own_are_refused_as_arguments() -> None:
    for key, text in (("reward_clipping", "reward_clip"), ("stack_num", "frame_stack")):
        with pytest.raises(BadInput, match=rf"env\.kwargs\.{key}: use the settings .*{text}"):
            make_env(BREAKOUT.model_copy(update={"kwargs": {key: 1}}))
    with pytest.raises(BadInput, match="vectorization=sync: Atari games are stepped natively"):
        make_vector_env(BREAKOUT.model_copy(update={"vectorization": "sync"}), 2)


def test_the_state_of_a_game_is_not_claimed_to_be_exact() -> None:
    assert not is_exact(lambda *, seed: make_vector_env(BREAKOUT, 1, seed=seed))


def test_games_are_evaluated_whole(numpy_policy: Any) -> None:
    config = BREAKOUT.model_copy(update={"episodic_life": True, "reward_clip": 1.0})
    evaluator = Evaluator(config, EvalConfig(episodes=2, seed=1), lambda: numpy_policy(spaces_of(BREAKOUT)[1]))
    result = evaluator.evaluate(pack_weights("policy", 1, 0, {"gain": np.array([0.01], np.float32)}))
    assert all(length > 100 for length in result.lengths), "five lives, not one"
