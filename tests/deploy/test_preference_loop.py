"""When labels are due, which stretches are compared, and what a run from preferences is refused for."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.records import GymTrajectory, Header
from rollcall.cluster.messages.steps import EnvSteps, Unroll
from rollcall.deploy.config.load import RunConfig, load_config
from rollcall.deploy.config.preference_settings import PreferencesConfig
from rollcall.deploy.kinds.preference_loop import _segments, with_taken_actions
from rollcall.learners.maths.distributions import distribution_for
from rollcall.reward_service.preferences.files import SegmentPair
from rollcall.reward_service.preferences.records import shows_taken_actions
from rollcall.reward_service.protocol import ArrayField, Segment

TASTE = "rollcall.reward_service.raters.tastes:upright_and_centred"


def test_labels_are_due_in_rounds_most_of_them_early_and_all_of_them_before_the_end() -> None:
    config = PreferencesConfig(rater="synthetic", taste=TASTE, total_labels=700, initial_labels=100, rounds=10)
    due = [config.labels_due(progress / 1000) for progress in range(1001)]
    assert due[0] == 100 and due[-1] == 700
    assert due == sorted(due)
    assert len(set(due)) == 10
    assert due[500] > 400  # a linear schedule would ask for 400 by the middle


def test_a_single_round_is_the_initial_labels() -> None:
    config = PreferencesConfig(rater="synthetic", taste=TASTE, total_labels=50, initial_labels=50, rounds=1)
    assert {config.labels_due(p) for p in (0.0, 0.5, 1.0)} == {50}


def test_the_loops_loss_is_told_of_a_raters_errors_and_of_no_less_than_peoples() -> None:
    def noise(**settings: object) -> float:
        return PreferencesConfig.model_validate({"rater": "synthetic", "taste": TASTE, **settings}).random_share

    assert noise() == 0.1
    assert noise(noise={"error_rate": 0.03}) == 0.1
    assert noise(noise={"error_rate": 0.2}) == 0.4
    assert noise(noise={"error_rate": 0.5}) < 1
    assert noise(noise={"error_rate": 0.2}, label_noise=0.3) == 0.3


def trajectory(steps: int, envs: int) -> GymTrajectory:
    flags = np.zeros((steps, envs), bool)
    positions = np.arange(steps, dtype=np.float32)[:, None, None] + 100 * np.arange(envs, dtype=np.float32)[:, None]
    return GymTrajectory(
        header=Header(ticket_id=0, attempt=1, epoch=1, policy_id="policy", actor_id="gym-0"),
        shard=0,
        incarnation=0,
        policy_version=0,
        unroll=Unroll(
            steps=EnvSteps(
                observations={"observation": positions},
                actions=np.zeros((steps, envs), np.int64),
                behaviour_logprobs=np.zeros((steps, envs), np.float32),
                rewards=np.zeros((steps, envs), np.float32),
                terminated=flags,
                truncated=flags,
                mask=~flags,
                episode_starts=flags,
            ),
            last_observations={"observation": positions[-1]},
            final_index=np.zeros((0, 2), np.int64),
            final_observations={"observation": np.zeros((0, 1), np.float32)},
        ),
    )


def test_stretches_do_not_cross_an_episodes_end_nor_hold_a_step_that_is_no_experience() -> None:
    whole = trajectory(12, 3)
    truncated, mask = whole.steps.truncated.copy(), whole.steps.mask.copy()
    truncated[3, 0] = True  # the last step of a stretch may be an episode's last
    truncated[5, 1] = True  # within the second stretch of env 1
    mask[8, 2] = False
    steps = replace(whole.steps, truncated=truncated, mask=mask)
    cut = replace(whole, unroll=replace(whole.unroll, steps=steps))
    found = list(_segments(cut, 4, lambda actions: actions))
    firsts = [float(segment.observations.array()[0, 0]) for segment in found]
    assert firsts == [0, 4, 8, 100, 108, 200, 204]
    assert all(segment.num_steps == 4 for segment in found)


def test_a_run_from_preferences_knows_what_it_lacks() -> None:
    with pytest.raises(BadInput, match=r"preferences.*synthetic and a taste go together"):
        load_config("cartpole-preferences", ["preferences.rater=people"])
    with pytest.raises(BadInput, match=r"preferences.*reward"):
        load_config("cartpole-preferences", ["reward=my_module:score"])
    with pytest.raises(BadInput, match=r"segment_steps.*unroll_length"):
        load_config("cartpole-preferences", ["actors.unroll_length=16"])
    with pytest.raises(BadInput, match="one array"):
        load_config("cartpole-preferences", ["env=FrozenLake-v1"])
    assert isinstance(load_config("cartpole-preferences"), RunConfig)


def test_a_label_of_an_earlier_release_is_of_what_was_done_once_it_is_read() -> None:
    """It held the actions as they were sampled: before tanh, here."""
    to_env = distribution_for(gym.spaces.Box(-2.0, 2.0, (1,), np.float32), "tanh").to_env
    seen = ArrayField.of(np.zeros((3, 2), np.float32))
    sampled = np.array([[-9.0], [0.0], [0.5]], np.float32)
    segment = Segment(observations=seen, actions=ArrayField.of(sampled))
    before = SegmentPair((segment, segment), "left", rater="ada", details={"metadata": {"question": "?"}})
    after = with_taken_actions(before, to_env)
    for converted in after.segments:
        np.testing.assert_allclose(converted.actions.array(), 2 * np.tanh(sampled), atol=1e-6)
    assert (shows_taken_actions(before), shows_taken_actions(after)) == (False, True)
    assert (after.choice, after.rater, after.details["metadata"]["question"]) == ("left", "ada", "?")  # type: ignore[index, call-overload]
