"""Runs whose actors compute gradients, in one process, and what such runs have no use for."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from tests.runs import config_of

SMALL = (
    "runtime=serial",
    "total_learner_steps=12",
    "actors.num_envs=4",
    "actors.num_shards=2",
    "actors.unroll_length=8",
    "eval.episodes=0",
    "metrics.enabled=false",
    "checkpoint.every_steps=1",
    "checkpoint.keep=20",
)
ENV = """
import os
import gymnasium as gym

class Huge(gym.Wrapper):
    left = 8  # steps of any env of the fragment after the third step: each finite, their squared return is not

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        if Huge.left and os.path.exists("runs/run/checkpoints/step-00000003"):
            Huge.left, reward = Huge.left - 1, 1e19
        return observation, reward, *rest

def make():
    return Huge(gym.make("CartPole-v1"))
"""


def test_a_gradient_that_is_not_finite_is_booked_as_dropped_and_its_ticket_made_again(tmp_path: Path) -> None:
    (tmp_path / "huge_rewards.py").write_text(ENV)
    with chdir(tmp_path):
        assert main.main(["train", "cartpole-a3c", *SMALL, "env=huge_rewards:make", "name=run"]) == 0
        assert main.main(["audit", "run"]) == 0
        summary = json.loads(Path("runs/run/summary.json").read_text())
    books = summary["ledger"]
    assert books["dropped_by_reason"] == {"non_finite": 1}
    assert (books["committed"], books["issued"]) == (12, 13)


def test_each_step_takes_as_many_gradients_as_the_algorithm_says() -> None:
    config: Any = config_of("cartpole-a3c")
    assert (config.tickets_per_step, config.steps_per_batch, config.max_policy_lag) == (1, 4 * 32, 3)
    config = config_of("cartpole-a3c", ["algorithm.gradients_per_step=3"])
    assert (config.tickets_per_step, config.steps_per_batch) == (3, 3 * 4 * 32)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["learner.num_processes=2"], ["learner.num_processes = 2", "set it to 1"]),
        (["policy.normalise_observations=true"], ["policy.normalise_observations = true", "set it to false"]),
        (["policy.normalise_rewards=true"], ["policy.normalise_rewards = true", "set it to false"]),
        (["reward=some_module:score"], ["reward", "remove the section"]),
        (["actors.outside.num_shards=1"], ["actors.outside", "remove the section"]),
        (["algorithm.gradients_per_step=0"], ["algorithm.gradients_per_step = 0"]),
    ],
)
def test_what_needs_the_experience_itself_is_refused_in_one_line(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(BadInput) as refused:
        config_of("cartpole-a3c", overrides)
    (line,) = str(refused.value).splitlines()
    assert all(part in line for part in parts), line
