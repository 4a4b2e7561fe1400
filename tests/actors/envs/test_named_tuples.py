"""Envs that show tuples: a Tuple is a Dict of "0", "1", ... to all that comes after, and what is wrong with one is said
with the name of its part."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rollcall.actors.control.state import is_exact
from rollcall.actors.envs.contract import ContractError
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env, make_vector_env
from rollcall.actors.envs.named_tuples import with_named_tuples
from rollcall.actors.envs.observations import ObservationReader
from rollcall.cluster.errors import BadInput

NESTED = spaces.Tuple(
    (
        spaces.Dict({"pose": spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.Discrete(3))), "mode": spaces.Discrete(2)}),
        spaces.Box(0, 255, (4,), np.uint8),
    )
)


class Nested(gym.Env[Any, Any]):
    observation_space, action_space = NESTED, spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.0, False, False, {}


def test_blackjack_shows_the_same_numbers_by_the_names_of_their_places() -> None:
    named, plain = make_env(EnvConfig(id="Blackjack-v1")), gym.make("Blackjack-v1")
    assert isinstance(named.observation_space, spaces.Dict)
    assert dict(named.observation_space.spaces) == dict(zip("012", plain.observation_space, strict=True))  # type: ignore[call-overload]
    for seed in range(5):
        seen, wanted = named.reset(seed=seed)[0], plain.reset(seed=seed)[0]
        assert seen == dict(zip("012", wanted, strict=True)) and named.observation_space.contains(seen)
        assert named.step(1)[0] == dict(zip("012", plain.step(1)[0], strict=True))


def test_tuples_at_any_depth_are_named_and_read_alike_with_and_without_the_names() -> None:
    env = with_named_tuples(Nested())
    reader = ObservationReader(env.observation_space, env.action_space)
    shown = env.reset(seed=3)[0]
    raw = env.unwrapped.reset(seed=3)[0]
    found, again = reader.read(shown), reader.read(raw)
    assert set(found) == {"0.pose.0", "0.pose.1", "0.mode", "1"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, again[name])
    np.testing.assert_array_equal(found["0.pose.0"], raw[0]["pose"][0])


def test_an_env_without_tuples_is_left_as_it_is() -> None:
    env = gym.make("CartPole-v1")
    assert with_named_tuples(env) is env


def test_it_goes_on_exactly_from_a_checkpoint() -> None:
    assert is_exact(partial(make_vector_env, EnvConfig(id="Blackjack-v1"), 3))


class ShowsText(Nested):
    observation_space = spaces.Tuple((spaces.Discrete(2), spaces.Text(5)))  # type: ignore[assignment]


def test_a_part_that_is_not_supported_is_refused_by_its_place() -> None:
    with pytest.raises(BadInput, match=r"at '1' is not supported: .* or a Dict or Tuple of those"):
        make_vector_env(EnvConfig(id=f"{__name__}:ShowsText"), 1)


def test_a_tuple_that_is_too_short_is_named_by_the_part_that_it_lacks() -> None:
    env = with_named_tuples(Nested())
    reader = ObservationReader(env.observation_space, env.action_space)
    whole = env.unwrapped.reset(seed=0)[0]
    for shown in (whole[:1], {"0": reader.copied(whole)["0"]}):
        with pytest.raises(ContractError, match="has no '1', which observation_space has"):
            reader.read(shown)
