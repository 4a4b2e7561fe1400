"""MiniGrid's envs by their ids: cells as one-hots, layouts that are held fixed, and what is wrong said in one line."""

from __future__ import annotations

import logging
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env
from rollcall.cluster.errors import BadInput
from tests.needs import require, require_module

ROOMS = "MiniGrid-MultiRoom-N6-v0"


def rooms(**kwargs: Any) -> gym.Env[Any, Any]:
    require("minigrid")
    return make_env(EnvConfig(id=ROOMS, kwargs={"maxRoomSize": 5, **kwargs}))


def layouts_of(env: gym.Env[Any, Any], seed: int, episodes: int) -> list[bytes]:
    """The whole grid at each episode's beginning, with where the agent stands."""
    found = []
    for episode in range(episodes):
        env.reset(seed=seed if episode == 0 else None)
        inner: Any = env.unwrapped
        found.append(inner.grid.encode().tobytes() + bytes([*map(int, inner.agent_pos), inner.agent_dir]))
    return found


def test_cells_are_one_hots_of_what_minigrid_shows_and_the_mission_is_left_out() -> None:
    env = rooms()
    plain = require_module("minigrid.wrappers").OneHotPartialObsWrapper(gym.make(ROOMS, maxRoomSize=5))
    seen, (wanted, _) = env.reset(seed=3)[0], plain.reset(seed=3)
    for action in (2, 1, 2, 2, 5, 0, 2, 2):
        assert set(seen) == {"image", "direction"} and env.observation_space.contains(seen)
        np.testing.assert_array_equal(seen["image"], wanted["image"])
        assert seen["direction"] == wanted["direction"]
        seen, wanted = env.step(action)[0], plain.step(action)[0]


def test_episodes_are_in_the_layouts_that_are_given_and_in_no_other() -> None:
    alone = {seed: layouts_of(rooms(), seed, 1)[0] for seed in (4, 9)}
    assert alone[4] != alone[9]
    assert set(layouts_of(rooms(layouts=[9]), 0, 5)) == {alone[9]}
    both = layouts_of(rooms(layouts=[4, 9]), 0, 20)
    assert set(both) == set(alone.values())
    assert layouts_of(rooms(layouts=[4, 9]), 0, 20) == both
    assert layouts_of(rooms(layouts=[4, 9]), 1, 20) != both


def test_without_given_layouts_each_episode_has_its_own() -> None:
    assert len(set(layouts_of(rooms(), 0, 10))) == 10


@pytest.mark.parametrize("layouts", [[], 3, [1.5], [True], [-1], "0", [2**31]])
def test_layouts_that_are_no_seeds_are_refused_in_one_line(layouts: object) -> None:
    with pytest.raises(
        BadInput, match=r"env.kwargs.layouts=.*: give a list of seeds, a layout each, such as \[0, 1, 2]"
    ):
        rooms(layouts=layouts)


def test_a_mission_that_differs_between_episodes_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    require("minigrid")
    with caplog.at_level(logging.WARNING):
        make_env(EnvConfig(id="MiniGrid-DoorKey-5x5-v0"))
        assert not caplog.records
        make_env(EnvConfig(id="MiniGrid-GoToDoor-5x5-v0"))
    assert "its mission differs between episodes and is text: the policy is not shown it" in caplog.text


def test_a_missing_minigrid_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(BadInput, match=r"needs a package that is not installed: pip install 'rollcall-rl\[minigrid\]'"):
        make_env(EnvConfig(id=ROOMS))


def test_an_unknown_id_is_answered_with_the_nearest() -> None:
    require("minigrid")
    with pytest.raises(BadInput, match="did you mean MiniGrid-MultiRoom-N6-v0"):
        make_env(EnvConfig(id="MiniGrid-MultiRoom-N6-v7"))
