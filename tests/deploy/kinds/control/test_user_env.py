"""A user's own environment, from Python and on the command line: what is said of it, and where."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rollcall.cluster.errors import BadInput
from rollcall.deploy import train
from rollcall.deploy.cli import main
from rollcall.deploy.config.checks import out_of_reach
from rollcall.deploy.kinds.recipes import load_config
from rollcall.learners.models.policy_config import PolicyConfig
from tests.runs import config_of

_RECIPE = """\
runtime: serial
total_learner_steps: 2
env: plants:Endless
algorithm: {name: ppo, epochs: 1}
actors: {num_envs: 2, unroll_length: 16}
eval: {episodes: 3, every_steps: 1, max_steps_per_episode: 40}
metrics: {enabled: false}
"""

_ENVS = """
import random
import gymnasium as gym
import numpy as np
from gymnasium import spaces

class Endless(gym.Env):
    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, high=1.0, length=None):
        self.action_space, self.length = spaces.Box(0, high, (1,), np.float32), length

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.array([random.random()], np.float32), {}

    def step(self, action):
        self.t += 1
        noise = np.random.normal()
        return np.array([random.random()], np.float32), noise, False, self.t == self.length, {}

class Long(Endless):
    def step(self, action):
        raise RuntimeError("far " * 500)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plants", raising=False)
    (tmp_path / "plants.py").write_text(_ENVS)
    (tmp_path / "plant.yaml").write_text(_RECIPE)
    return tmp_path


def events(summary: dict[str, Any], kind: str) -> list[str]:
    lines = (Path(summary["run_directory"]) / "events.jsonl").read_text().splitlines()
    return [event["text"] for event in map(json.loads, lines) if event["kind"] == kind]


def test_episodes_without_an_end_are_unfinished_in_the_result_and_told_once() -> None:
    summary = train("plant.yaml")
    assert (summary["final_eval"]["n"], summary["final_eval"]["unfinished"]) == (3, 3)
    (told,) = events(summary, "eval_unfinished")
    assert told.startswith("3 of 3 episodes had not ended after 40 steps") and "eval.max_steps_per_episode" in told
    ended = train("plant.yaml", env={"kwargs": {"length": 5}})
    assert ended["final_eval"]["unfinished"] == 0 and not events(ended, "eval_unfinished")


def test_one_seed_gives_one_result_where_an_env_draws_from_the_global_generators() -> None:
    hashes = [train("plant.yaml", env={"kwargs": {"length": 5}}, seed=seed)["weights_hash"] for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_action_space_far_from_the_first_actions_is_told_where_the_run_begins() -> None:
    (told,) = events(train("plant.yaml", env={"kwargs": {"high": 1000.0}}), "warning")
    assert told.startswith("plants:Endless takes actions in [0, 1000]") and "policy.squash=tanh" in told
    assert not events(train("plant.yaml"), "warning")


@pytest.mark.parametrize(
    ("low", "high", "settings", "warned"),
    [
        (-1.0, 1.0, {}, False),
        (-2.0, 2.0, {}, False),
        (-0.4, 0.4, {}, False),
        (0.0, 1.0, {}, False),
        (-10.0, 10.0, {}, False),
        (0.0, 1000.0, {}, True),
        (-100.0, 100.0, {}, True),
        (20.0, 21.0, {}, True),
        (0.0, 1000.0, {"squash": "tanh"}, False),
        (-100.0, 100.0, {"log_std_init": 3.5}, False),
        (-np.inf, np.inf, {}, False),
    ],
)
def test_what_the_first_policy_reaches_needs_no_warning(
    low: float, high: float, settings: dict[str, Any], warned: bool
) -> None:
    space = spaces.Box(np.float32(low), np.float32(high), (2,))
    assert bool(out_of_reach("env", space, PolicyConfig(**settings))) == warned


def test_an_env_class_in_place_of_its_name_is_its_name() -> None:
    import plants  # type: ignore[import-not-found]

    for settings in ({"env": plants.Endless}, {"env": {"id": plants.Endless}}, {"env.id": plants.Endless}):
        assert config_of("plant.yaml", values=settings).env.id == "plants:Endless"
    with pytest.raises(BadInput, match=r"give what makes it, a class or a function, not a Endless"):
        train("plant.yaml", env=plants.Endless())
    with pytest.raises(BadInput, match=r"<lambda> of .*, and a reward runs in the reward service.*my_module:name"):
        train("plant.yaml", reward=lambda: 0.0)
    assert not Path("runs").exists()


def test_numbers_of_numpy_are_numbers_of_a_recipe() -> None:
    assert load_config("plant.yaml", values={"seed": np.int64(3), "env": "plants:Endless"}).seed == 3


def test_an_error_of_an_env_begins_with_the_users_line_and_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "plant.yaml", "env=plants:Long", "actors.max_env_restarts=0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    number = len(_ENVS.splitlines())
    place = f'{Path.cwd() / "plants.py"}, line {number}, in step: raise RuntimeError("far " * 500): '
    assert line.startswith(f"rollcall: error: {place}")
    assert line.count("far ") == 501
    assert line.endswith("(traceback in runs/plant/logs/driver.log)")
