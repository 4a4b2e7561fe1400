"""What a user may name as an environment, and the one line that says what is wrong with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from pydantic import ValidationError

from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env, make_vector_env, spaces_of
from rollcall.cluster.errors import BadInput
from tests.needs import require


def refused(match: str, **settings: Any) -> None:
    """Making the env is bad input, said in one line that matches."""
    with pytest.raises(BadInput, match=match) as caught:
        make_vector_env(EnvConfig(**settings), 2)
    assert len(str(caught.value).splitlines()) == 1


def test_an_env_may_be_written_as_its_id_alone() -> None:
    assert EnvConfig.model_validate("CartPole-v1") == EnvConfig(id="CartPole-v1")
    with pytest.raises(ValidationError, match="framestack"):
        EnvConfig.model_validate({"id": "CartPole-v1", "framestack": 4})


def test_an_unknown_id_is_refused_with_a_suggestion() -> None:
    refused(r"'CartPol-v1' is not registered with gymnasium: did you mean CartPole-v1\?", id="CartPol-v1")
    refused(r"did you mean CartPole-v1\?", id="CartPole-v9")
    refused(r"did you mean FrozenLake-v1\?", id="frozenlake-v1")
    refused("'xyzzy' is not registered with gymnasium: give an id or module:function", id="xyzzy")


def test_arguments_that_the_env_does_not_take_are_refused() -> None:
    refused("'CartPole-v1' does not take these arguments .*gravity", id="CartPole-v1", kwargs={"gravity": 1.0})
    refused("'Pendulum-v1' does not take these arguments .*gravity", id="Pendulum-v1", kwargs={"gravity": 1, "x": 2})
    assert make_env(EnvConfig(id="Pendulum-v1", kwargs={"g": 5.0})).unwrapped.g == 5.0  # type: ignore[attr-defined]


MISSING = """
import sys
sys.modules[{package!r}] = None
from rollcall.actors.envs.environment import EnvConfig, make_env
make_env(EnvConfig(id={env!r}))
"""


@pytest.mark.parametrize(
    ("env", "package", "remedy"),
    [
        ("HalfCheetah-v5", "mujoco", "pip install 'rollcall-rl[mujoco]'"),
        ("LunarLander-v3", "Box2D", "pip install 'rollcall-rl[box2d]'"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(env: str, package: str, remedy: str) -> None:
    code = MISSING.format(env=env, package=package)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(f"BadInput: env {env!r} needs a package that is not installed: {remedy}"), done.stderr


def test_mujoco_leaves_nothing_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("mujoco")
    monkeypatch.chdir(tmp_path)
    make_env(EnvConfig(id="HalfCheetah-v5")).close()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_ale_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    refused(
        r"'ALE/Pong-v5' needs a package that is not installed: pip install 'rollcall-rl\[atari\]'", id="ALE/Pong-v5"
    )


def test_a_missing_minatar_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minatar", None)
    refused(r"'MinAtar/Breakout-v1' needs .*: pip install 'rollcall-rl\[minatar\]'", id="MinAtar/Breakout-v1")


def test_minatar_registers_its_games_and_shows_where_things_are(capfd: pytest.CaptureFixture[str]) -> None:
    require("minatar")
    for _ in range(2):
        env = make_env(EnvConfig(id="MinAtar/SpaceInvaders-v1"))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (10, 10, 6) and observation.dtype == np.bool_ and observation.any()
    assert env.action_space == gym.spaces.Discrete(4)
    assert capfd.readouterr().err == ""


def test_import_paths_are_found_from_the_working_directory(user_module: Callable[[str], str]) -> None:
    module = user_module(
        """
        def make(length=3):
            return gym.make("CartPole-v1", max_episode_steps=length)

        gym.register("Own-v0", make)
        """
    )
    env = make_env(EnvConfig(id=f"{module}:make", kwargs={"length": 2}))
    env.reset()
    assert [env.step(0)[3] for _ in range(2)] == [False, True]
    env = make_env(EnvConfig(id=f"{module}:make", max_episode_steps=1))
    env.reset()
    assert env.step(0)[3]
    assert make_env(EnvConfig(id=f"{module}:Own-v0")).spec is not None, "gymnasium's own module:id works as well"


def test_import_paths_that_lead_nowhere_are_refused(user_module: Callable[[str], str]) -> None:
    module = user_module(
        """
        make_env = 3

        def make_nothing():
            pass

        def fail():
            raise OSError("no such robot:\\n  plug it in")

        def needs(argument):
            pass

        def tuples():
            space = spaces.Tuple([spaces.Box(-9, 9, (4,)), spaces.Sequence(spaces.Discrete(1))])
            return gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda state: (state, ()), space)

        def nested_text():
            space = spaces.Dict({"state": spaces.Dict({"name": spaces.Text(4)})})
            return gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda state: state, space)

        def whole_actions():
            return gym.wrappers.TransformAction(gym.make("Pendulum-v1"), float, spaces.Box(0, 9, (1,), np.int64))
        """
    )
    broken = user_module("import not_there_at_all\n")
    refused("there is no module 'no_such_module' in ", id="no_such_module:make")
    refused(f"module {broken!r} needs the package 'not_there_at_all', which is not installed", id=f"{broken}:make")
    refused(
        rf"module {module!r} \(.*{module}.py\) has no 'make_nothin': did you mean make_nothing\?",
        id=f"{module}:make_nothin",
    )
    refused(f"env '{module}:make_env' is a int: name a function", id=f"{module}:make_env")
    refused("returned a NoneType: it must return a gymnasium.Env", id=f"{module}:make_nothing")
    refused("in fail: .*OSError: no such robot: plug it in.: fix it", id=f"{module}:fail")
    refused("does not take these arguments .*argument.*: fix env.kwargs", id=f"{module}:needs")
    refused("observation space Sequence.* at '1' is not supported: wrap the env", id=f"{module}:tuples")
    refused("observation space Text.* at 'state.name' is not supported", id=f"{module}:nested_text")
    refused("action space Box.*int64.* is not supported", id=f"{module}:whole_actions")


def test_a_way_of_stepping_that_the_env_has_not_is_refused() -> None:
    refused("native: 'Pendulum-v1' has no vector form of its own: use auto", id="Pendulum-v1", vectorization="native")
    refused("native: frames are stacked env by env", id="CartPole-v1", vectorization="native", frame_stack=2)
    refused(
        "native: 'CartPole-v1' resets in its own way, not same_step",
        id="CartPole-v1",
        vectorization="native",
        autoreset="same_step",
    )
    refused("atari=true: 'CartPole-v1' is no id of ALE/", id="CartPole-v1", atari=True)
    refused("episodic_life=true: 'CartPole-v1' is no Atari game", id="CartPole-v1", episodic_life=True)


def test_the_spaces_of_one_env_are_told_without_the_action_mask(user_module: Callable[[str], str]) -> None:
    observation, action = spaces_of(EnvConfig(id="CartPole-v1", frame_stack=3))
    assert observation.shape == (3, 4)
    assert action == gym.spaces.Discrete(2)
    module = user_module(
        """
        def make():
            space = spaces.Dict({"state": spaces.Box(-9, 9, (4,)), "action_mask": spaces.MultiBinary(2)})
            env = gym.make("CartPole-v1")
            return gym.wrappers.TransformObservation(env, lambda s: {"state": s, "action_mask": np.ones(2)}, space)
        """
    )
    observation, _ = spaces_of(EnvConfig(id=f"{module}:make"))
    assert observation == gym.spaces.Dict({"state": gym.spaces.Box(-9, 9, (4,))})
