"""`rollcall solve`: the exact optimum of an env with a transition table, drawn; and one line for an env without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.deploy.cli.main import main

MODULE = """
import gymnasium as gym
import numpy as np

class Corridor(gym.Env):
    '''Three cells and a goal behind them; what its table says and what it does are the same, but where it lies.'''
    observation_space = gym.spaces.Discrete(4)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, lies=False, reward=-1.0, table=True):
        self.lies = lies
        if table:
            left, right = ([(1.0, max(s - 1, 0), reward, False)] for s in range(4)), range(4)
            self.P = {s: {0: back, 1: [(1.0, min(s + 1, 3), reward, s == 2)]} for s, back in zip(right, left)}
            self.initial_state_distrib = np.array([1.0, 0, 0, 0])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = 0
        return 0, {}

    def step(self, action):
        _, self.s, reward, terminated = self.P[self.s][int(action)][0]
        return self.s, reward - self.lies, terminated, False, {}

def broken():
    env = Corridor()
    env.P[1][0] = [(0.4, 0, 0.0, False)]
    return env
"""


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(".")
    Path("corridors.py").write_text(MODULE)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["solve", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["solve", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    return errors[0]


def test_the_lakes_optimum_is_printed_with_its_policy(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "FrozenLake-v1")
    assert "undiscounted: the start is worth 0.8235294118" in text  # 14/17
    assert "within its limit of 100 steps: 0.7441902878 at best" in text
    assert "discount 0.99: the start is worth 0.542025932" in text
    assert "policy:\n  < ^ ^ ^\n  < H < H\n  ^ v < H\n  H > v G\n" in text
    assert "policy: the same" in text


def test_the_cliffs_policy_goes_along_its_edge(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "CliffWalking-v1", "--discount", "1")
    assert "the start is worth -13 " in text
    assert text.splitlines()[-2:] == ["  > > > > > > > > > > > v", "  ^ . . . . . . . . . . G"]
    assert "discount" not in text.replace("undiscounted", "")


def test_taxi_has_no_grid_of_states_and_its_policy_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "Taxi-v4", "--discount", "1")
    assert "500 states (400 are acted in)" in text
    assert "the start is worth 7.93 " in text
    assert "policy (action: states):\n  0: 4, 6-9, " in text


def test_arguments_of_the_env_change_its_optimum(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the start is worth 1 " in answer(capsys, "FrozenLake-v1", "is_slippery=false")


def test_as_json_every_state_has_its_value_and_action(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = json.loads(answer(capsys, "corridors:Corridor", "--json", "--discount", "0.5"))
    (result,) = found["results"]
    assert result["policy"] == [1, 1, 1, None]
    np.testing.assert_allclose(result["values"][:3], [-1.75, -1.5, -1.0])
    assert result["value"] == result["values"][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["CartPole-v1"], "has Box observations"),
        (["corridors:Corridor", "table=false"], "gives no transition table"),
        (["corridors:broken"], "state 1, action 0: probabilities that sum to 0.4"),
        (["corridors:Corridor", "lies=true"], "does what its transition table does not have"),
        (["Taxi-v4", "fickle_passenger=true"], "does what its transition table does not have"),
        (["corridors:Corridor", "reward=1", "--discount", "1"], "has no optimum"),
        (["Taxi-v3"], "did you mean Taxi-v4"),
        (["FrozenLake-v1", "--discount", "1.5"], "must be above 0, and 1 at the most"),
        (["FrozenLake-v1", "slippery"], "an override is key=value"),
    ],
)
def test_what_cannot_be_solved_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in refused(capsys, *arguments)


def test_where_one_of_the_cases_has_no_optimum_the_others_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "corridors:Corridor", "reward=1", "--discount", "1", "--discount", "0.9")
    assert "undiscounted: no optimum: " in text
    assert "discount 0.9: the start is worth 10 " in text
