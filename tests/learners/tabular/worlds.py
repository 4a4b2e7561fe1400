"""Worlds with known dynamics: gymnasium's, and small ones whose answers are known from the book."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.action_values import Explorer
from rollcall.learners.tabular.model import Model
from rollcall.learners.tabular.play import Played, play_episode
from rollcall.learners.tabular.prediction import Episode

LAKE, CLIFF, TAXI = "FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"


def model_of(env_id: str, **kwargs: Any) -> Model:
    plain: Any = gym.make(env_id, **kwargs).unwrapped
    return Model.of_table(plain.P, plain.initial_state_distrib)


def random_model(rng: np.random.Generator, num_states: int = 6, num_actions: int = 3, end: float = 0.1) -> Model:
    """Three outcomes of every pair, of which each ends the episode with probability `end`."""
    table = {
        s: {
            a: [
                (p, int(rng.integers(num_states)), float(rng.normal()), bool(rng.random() < end))
                for p in rng.dirichlet([1.0] * 3).tolist()
            ]
            for a in range(num_actions)
        }
        for s in range(num_states)
    }
    return Model.of_table(table, np.full(num_states, 1 / num_states))


def random_policy(rng: np.random.Generator, model: Model) -> Array:
    policy: Array = rng.dirichlet([1.0] * model.num_actions, size=model.num_states)
    return policy


def uniform(model: Model) -> Array:
    return np.full((model.num_states, model.num_actions), 1 / model.num_actions)


class DrawnEnv:
    """A play.DiscreteEnv that is drawn from a model, faster than gymnasium's own; cut off after `limit`."""

    def __init__(self, model: Model, *, seed: int = 0, limit: int = 10_000) -> None:
        self._rng = random.Random(seed)
        pairs = [model.outcomes(s, a) for s in range(model.num_states) for a in range(model.num_actions)]
        columns = (model.next_states, model.rewards, model.terminated)
        self._sums = [np.cumsum(model.probabilities[pair]).tolist() for pair in pairs]
        self._outcomes = [list(zip(*(column[pair].tolist() for column in columns), strict=True)) for pair in pairs]
        self._start_sums = np.cumsum(model.start).tolist()
        self._num_actions, self._limit = model.num_actions, limit
        self._state = self._steps = 0

    def reset(self, *, seed: int | None = None) -> tuple[int, Any]:
        self._state, self._steps = bisect(self._start_sums, self._rng.random()), 0
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, Any]:
        pair = self._state * self._num_actions + action
        sums, outcomes = self._sums[pair], self._outcomes[pair]
        self._state, reward, terminated = outcomes[min(bisect(sums, self._rng.random()), len(outcomes) - 1)]
        self._steps += 1
        return self._state, reward, terminated, self._steps == self._limit, {}


def episodes(model: Model, policy: Array, rng: np.random.Generator, *, max_steps: int = 1000) -> Iterator[Episode]:
    """One after the other, drawn from the dynamics."""
    draw = random.Random(int(rng.integers(2**31)))
    env, sums = DrawnEnv(model, seed=draw.getrandbits(31), limit=max_steps), policy.cumsum(1).tolist()
    while True:
        states, rewards, terminated, truncated = [env.reset()[0]], [], False, False
        while not terminated and not truncated:
            action = min(bisect(sums[states[-1]], draw.random()), model.num_actions - 1)
            state, reward, terminated, truncated, _ = env.step(action)
            states.append(state)
            rewards.append(reward)
        yield Episode(np.array(states), np.array(rewards), terminated=terminated)


def played(model: Model, policy: Array, rng: np.random.Generator, *, max_steps: int = 1000) -> Episode:
    return next(episodes(model, policy, rng, max_steps=max_steps))


def learn(
    model: Model, method: Any, episodes: int, *, seed: int = 0, limit: int = 10_000, **settings: Any
) -> tuple[Any, list[Played]]:
    """(the method after so many episodes, what these were like)"""
    config = method.Config(**settings)
    made, env = method(model.num_states, model.num_actions, config), DrawnEnv(model, seed=seed, limit=limit)
    rng = np.random.default_rng(seed)
    return made, [play_episode(env, made, Explorer(rng, config.epsilon_at(i, episodes))) for i in range(episodes)]


def random_walk() -> Model:
    """The book's example 6.2: five states in a row, right or left by chance, a reward of 1 for leaving on the right.
    The states' values are 1/6 to 5/6."""
    table = {}
    for s in range(5):
        left = (0.5, max(s - 1, 0), 0.0, s == 0)
        right = (0.5, min(s + 1, 4), float(s == 4), s == 4)
        table[s] = {0: [left, right]}
    return Model.of_table(table, np.eye(5)[2])
