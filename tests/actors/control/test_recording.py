"""What an evaluation shows and does, as a recorded set: all of it, once, in its place. Files that cannot be used."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.evaluation_config import EvalConfig
from rollcall.actors.control.recording import (
    EpisodeRecorder,
    check_spaces_of,
    check_target,
    read_recorded,
    write_recorded,
)
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env, spaces_of
from rollcall.actors.envs.plain_spaces import alike, space_of, space_text
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.recorded import RecordedEpisodes
from rollcall.cluster.messages.weights import pack_weights
from rollcall.cluster.seeds import derive_seed
from tests.experts import balances, recorded

CARTPOLE = EnvConfig(id="CartPole-v1")
WEIGHTS = pack_weights("policy", 1, 3, {"gain": np.array([50.0], np.float32)})


def taken_down(numpy_policy: Any, **settings: Any) -> tuple[RecordedEpisodes, Any]:
    observations, actions = spaces_of(CARTPOLE)
    evaluator = Evaluator(CARTPOLE, EvalConfig(**{"episodes": 7} | settings), lambda: numpy_policy(actions, False))
    recorder = EpisodeRecorder()
    report = evaluator.evaluate(WEIGHTS, seed=5, recorder=recorder)
    evaluator.close()
    found = recorder.recorded(env=CARTPOLE.id, observation_space=observations, action_space=actions, acted_by="greedy")
    return found, report


def test_an_episode_is_taken_down_as_a_single_env_shows_it_again(numpy_policy: Any) -> None:
    found, report = taken_down(numpy_policy, num_envs=3)
    assert found.fault() == ""
    assert (found.returns.tolist(), np.diff(found.episode_ends, prepend=0).tolist()) == (
        list(report.returns),
        list(report.lengths),
    )
    for number, (begin, end) in enumerate(zip(found.episode_starts, found.episode_ends, strict=True)):
        env = make_env(CARTPOLE)
        observation, _ = env.reset(seed=derive_seed(5, "eval", number) >> 32)
        for i in range(begin, end):
            assert np.array_equal(found.observations["observation"][i], observation)
            observation, reward, terminated, truncated, _ = env.step(int(found.actions[i]))
            assert (found.rewards[i], found.terminated[i], found.truncated[i]) == (reward, terminated, truncated)
        assert np.array_equal(found.last_observations["observation"][number], observation)


def test_what_is_recorded_does_not_depend_on_how_many_episodes_run_side_by_side(numpy_policy: Any) -> None:
    one, many = (taken_down(numpy_policy, num_envs=number)[0] for number in (1, 5))
    assert np.array_equal(one.actions, many.actions)
    assert np.array_equal(one.observations["observation"], many.observations["observation"])


def test_an_episode_that_is_left_before_its_end_is_truncated_there(numpy_policy: Any) -> None:
    found, report = taken_down(numpy_policy, max_steps_per_episode=9)
    assert report.unfinished
    assert found.fault() == ""
    cut = found.episode_ends[np.diff(found.episode_ends, prepend=0) == 9] - 1
    assert found.truncated[cut].sum() == report.unfinished
    assert not (found.truncated & found.terminated).any()


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    before = dataclasses.replace(recorded("CartPole-v1", balances, episodes=2), action_mask=np.ones((1000, 2), bool))
    target = str(tmp_path / "expert.safetensors")
    check_target(target)
    write_recorded(target, before)
    after = read_recorded(target)
    assert (after.env, after.acted_by, after.num_episodes) == ("CartPole-v1", "unknown", 2)
    for name in ("actions", "rewards", "terminated", "truncated", "episode_ends", "action_mask"):
        own, other = getattr(before, name), getattr(after, name)
        assert own.dtype == other.dtype and np.array_equal(own, other)
    check_spaces_of(target, after, *spaces_of(CARTPOLE))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data[: len(data) // 2], "no recorded set, or a damaged one: truncated"),
        (lambda data: b"not a file of ours", "no recorded set, or a damaged one"),
        (lambda data: None, "No such file or directory"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, damage: Any, text: str) -> None:
    target = tmp_path / "expert.safetensors"
    write_recorded(str(target), recorded("CartPole-v1", balances, episodes=1))
    damaged = damage(target.read_bytes())
    target.unlink()
    if damaged is not None:
        target.write_bytes(damaged)
    with pytest.raises(BadInput, match=text) as refused:
        read_recorded(str(target))
    assert "\n" not in str(refused.value) and str(target) in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (lambda r: {"rewards": r.rewards[:-1]}, r"its rewards has shape \(499,\), where there are 500"),
        (lambda r: {"episode_ends": np.array([499])}, "its episodes do not add up to its 500 steps"),
        (lambda r: {"episode_ends": np.array([100, 500])}, "its last_observations.observation has shape"),
        (lambda r: {"truncated": r.truncated | (np.arange(500) == 7)}, "do not end where its steps say so"),
        (lambda r: {"rewards": np.full(500, np.nan, np.float32)}, "its rewards has numbers that are not finite"),
    ],
)
def test_a_set_that_contradicts_itself_is_refused(tmp_path: Path, changes: Any, text: str) -> None:
    whole = recorded("CartPole-v1", balances, episodes=1)
    target = str(tmp_path / "expert.safetensors")
    write_recorded(target, dataclasses.replace(whole, **changes(whole)))
    with pytest.raises(BadInput, match=f"a damaged recorded set: .*{text}"):
        read_recorded(target)


def test_a_set_of_another_space_is_refused_in_one_line() -> None:
    found = recorded("CartPole-v1", balances, episodes=1)
    with pytest.raises(BadInput, match=r"^x: recorded in CartPole-v1, which shows Box.* and this env shows Box"):
        check_spaces_of("x", found, *spaces_of(EnvConfig(id="Pendulum-v1")))
    with pytest.raises(BadInput, match=r"^x: recorded in CartPole-v1, which takes Discrete\(2\), and this env takes"):
        check_spaces_of("x", found, spaces_of(CARTPOLE)[0], gym.spaces.Discrete(3))
    with pytest.raises(BadInput, match=r"it has actions that are none of Discrete\(2\)"):
        check_spaces_of("x", dataclasses.replace(found, actions=found.actions + 1), *spaces_of(CARTPOLE))


def test_a_target_that_cannot_be_written_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a recorded set is a \.safetensors file: name it expert\.safetensors"):
        check_target(str(tmp_path / "expert.npz"))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        check_target(str(tmp_path / "file" / "expert.safetensors"))


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-1.0, 2.0, (3,), np.float32),
        gym.spaces.Box(np.array([-1.0, -np.inf]), np.array([1.0, np.inf]), dtype=np.float64),
        gym.spaces.Box(0, 255, (4, 3), np.uint8),
        gym.spaces.Discrete(5, start=-2),
        gym.spaces.MultiDiscrete([3, 4], start=[1, 0]),
        gym.spaces.MultiBinary(6),
        gym.spaces.Dict({"a": gym.spaces.Discrete(2), "b": gym.spaces.Dict({"c": gym.spaces.Box(-1, 1, (2,))})}),
    ],
    ids=str,
)
def test_a_space_is_itself_again_after_its_text(space: Any) -> None:
    again = space_of(space_text(space))
    assert again == space and again.dtype == space.dtype and alike(space, again)


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "Sphere", "dtype": "float32"}', '{"kind": "Box"}', '{"a": 1}'])
def test_text_that_is_no_space_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is no space"):
        space_of(text)
