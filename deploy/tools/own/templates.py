"""The files that `rollcall new` writes. Each works as it is, and its test passes:
tests/deploy/tools/test_own.py runs them. NAME stands for the module, CLASS for a class."""

from __future__ import annotations

ENV = '''\
"""An environment. Train in it:   rollcall train cartpole-ppo env=NAME:CLASS name=NAME
Look at it first:                 rollcall check NAME:CLASS"""

import gymnasium as gym
import numpy as np


class CLASS(gym.Env):
    """A point that is to be moved to 0."""

    def __init__(self, reach: float = 5.0):  # a recipe gives arguments as env.kwargs.reach=2
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(3)  # left, stay, right
        self.reach = reach

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # draw from self.np_random alone: the same seed is the same episode then
        self.position = self.np_random.uniform(-self.reach, self.reach)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.position += 0.5 * (action - 1)
        self.steps += 1
        terminated = abs(self.position) < 0.25  # the episode is over: nothing comes after it
        truncated = self.steps >= 50  # it was only cut off: what would come is still worth something
        return self._observation(), -abs(self.position), terminated, truncated, {}

    def _observation(self):
        return np.array([self.position], np.float32)
'''
ENV_TEST = """\
from gymnasium.utils.env_checker import check_env
from NAME import CLASS


def test_it_is_an_environment_as_gymnasium_knows_them():
    check_env(CLASS(), skip_render_check=True)


def test_moving_towards_0_ends_the_episode():
    env = CLASS(reach=1.0)
    env.reset(seed=0)
    terminated = False
    for _ in range(10):
        _, _, terminated, _, _ = env.step(0 if env.position > 0 else 2)
        if terminated:
            break
    assert terminated
"""
REWARD = '''\
"""A reward for completions. Train with it:   rollcall train my_recipe.yaml reward=NAME:score
Look at it first:                            rollcall check NAME:score"""


def score(prompt, response, answer=None):
    """One number for one completion. Parameters are called as the data's columns are; TRL's form works too:
    def score(prompts, completions, answer, **columns), which gives a list. None is no score; an error ends the run."""
    right = answer is not None and response.strip() == str(answer)
    brief = max(0.0, 1.0 - len(response) / 400)
    return {"score": float(right) + 0.1 * brief, "components": {"right": float(right), "brief": brief}}
'''
REWARD_TEST = """\
from NAME import score


def test_a_right_answer_is_worth_more_than_a_wrong_one():
    right, wrong = score("1 + 1 =", "2", "2"), score("1 + 1 =", "3", "2")
    assert right["score"] > wrong["score"] and right["components"]["right"] == 1.0
"""
TASK = '''\
"""A task for language models. Train on it:   rollcall train arithmetic-grpo task=NAME:CLASS name=NAME
Look at it first:                           rollcall check NAME:CLASS"""

import random

from rollcall.actors.tasks.own_task import TextTask


class CLASS(TextTask):
    """Say a word backwards."""

    def rows(self, split):
        draw = random.Random(split)  # the same rows in the same order, on every machine
        words = ["".join(draw.choices("abcd", k=3)) for _ in range(400 if split == "train" else 100)]
        return [{"prompt": f"{word}>", "answer": word[::-1]} for word in words]

    def judge(self, row, completion):
        """True or false; or a number, the reward."""
        return completion.strip() == row.answer

    def alphabet(self):
        """For policy.model=tiny, a character model made for the task: leave it out with a model of your own."""
        return "abcd>"
'''
TASK_TEST = """\
from types import SimpleNamespace

from NAME import CLASS


def test_its_own_answers_are_right_and_others_are_not():
    task = CLASS()
    for row in task.rows("eval"):
        given = SimpleNamespace(**row)
        assert task.judge(given, row["answer"]) and not task.judge(given, row["answer"] + "a")


def test_rows_are_the_same_every_time():
    assert CLASS().rows("train") == CLASS().rows("train")
"""
ALGORITHM = '''\
"""An algorithm. Train with it:   rollcall train cartpole-ppo algorithm.name=NAME:CLASS name=NAME

It is PPO but for what is written here. All that an algorithm may be is in rollcall/learners/algorithm.py."""

from rollcall.learners.algorithms.control.ppo import PPO


class CLASS(PPO):
    """PPO, in which the policy is also told how sure it is."""

    def loss(self, context, part):
        found = super().loss(context, part)
        return found._replace(metrics={**found.metrics, "half_loss": 0.5 * found.loss.detach()})
'''
ALGORITHM_TEST = """\
import rollcall
from NAME import CLASS

RECIPE = {
    **{"total_learner_steps": 2, "runtime": "serial", "env": "CartPole-v1", "learner": {"compile": "off"}},
    **{"actors": {"num_envs": 2, "num_shards": 2, "unroll_length": 8}, "eval": {"episodes": 0}},
    **{"metrics": {"enabled": False}},
}


def test_it_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLLCALL_RUNS", str(tmp_path))
    result = rollcall.train(RECIPE, algorithm={"name": CLASS, "epochs": 1, "num_minibatches": 2})
    assert result.status == "completed" and all("half_loss" in record for record in result.metrics)
"""
RECIPE = """\
# CartPole by PPO. Train:   rollcall train NAME.yaml      Check it first:   rollcall train NAME.yaml --dry-run
name: FILE
total_env_steps: 100_000
env: CartPole-v1            # or my_module:make_env
algorithm: {name: ppo, discount: 0.98, gae_lambda: 0.8, epochs: 10, num_minibatches: 8}
actors: {num_envs: 16, num_shards: 4, unroll_length: 128}
learner: {learning_rate: 1e-3}
eval: {episodes: 20}
# All settings: rollcall config NAME.yaml      One of them: rollcall config NAME.yaml --explain actors.num_envs
"""
RECIPE_TEST = """\
import subprocess
import sys


def test_the_recipe_could_begin():
    command = [sys.executable, "-m", "rollcall.deploy.cli", "train", "NAME.yaml", "--dry-run"]
    subprocess.run(command, check=True, timeout=120)
"""
# What -> (the file's ending, its text, its test's).
TEMPLATES = {
    "env": (".py", ENV, ENV_TEST),
    "reward": (".py", REWARD, REWARD_TEST),
    "task": (".py", TASK, TASK_TEST),
    "algorithm": (".py", ALGORITHM, ALGORITHM_TEST),
    "recipe": (".yaml", RECIPE, RECIPE_TEST),
}
