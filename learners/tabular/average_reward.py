"""The average-reward form, for tasks that go on for ever: exact solutions of a model, and differential TD. An episode
that ends goes on with a first state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular.model import Model
from rollcall.learners.tabular.planning import greedy


@dataclass(frozen=True)
class Gain:
    """What a policy gives per step, and how much better than that it fares at first from each state."""

    average_reward: float
    values: Array  # [S]: differential, with mean 0 under the policy's own distribution of states
    policy: Array  # [S, A]


def going_on(model: Model, policy: Array) -> Array:
    """[S, S]: the policy's transitions, where a first state follows the end of an episode."""
    matrix = model.transitions(policy)
    ended: Array = 1.0 - matrix.sum(1)
    whole: Array = matrix + ended[:, None] * model.start
    return whole


def stationary(matrix: Array) -> Array:
    """[S]: mu with mu P = mu, of a chain with one recurrent class; the book's (10.8)."""
    system = np.vstack([matrix.T - np.eye(len(matrix)), np.ones(len(matrix))])
    found, *_ = np.linalg.lstsq(system, np.append(np.zeros(len(matrix)), 1.0), rcond=None)
    return np.asarray(found)


def evaluate(model: Model, policy: Array) -> Gain:
    """r(pi) = sum_s mu(s) sum_a pi(a|s) sum p r, the book's (10.7), and the differential values:
    v = r_pi - r(pi) + P_pi v, with mu v = 0."""
    matrix, rewards = going_on(model, policy), (policy * model.expected_rewards()).sum(1)
    mu = stationary(matrix)
    average = float(mu @ rewards)
    system = np.eye(len(matrix)) - matrix + np.outer(np.ones(len(matrix)), mu)
    return Gain(average, np.linalg.solve(system, rewards - average), policy)


def optimal(model: Model, *, max_iterations: int = 1000) -> Gain:
    """Policy iteration (Howard, 1960): differential values of the policy, then the greedy policy of them, until none is
    better. For models in which every policy has one recurrent class."""
    found = evaluate(model, greedy(model.expected_rewards()))
    for _ in range(max_iterations):
        q = differential_backup(model, found.values)
        own = (found.policy * q).sum(1)
        better = q.max(1) > own + 1e-9 * max(1.0, float(np.abs(q).max()))
        if not better.any():
            return found
        found = evaluate(model, np.where(better[:, None], greedy(q), found.policy))
    raise ValueError(f"no end after {max_iterations} improvements: a policy has several recurrent classes")


def differential_backup(model: Model, values: Array) -> Array:
    """[S, A]: the expected reward and differential value of what follows; the average reward is not taken off."""
    at_start = float(model.start @ values)
    following = np.where(model.terminated, at_start, values[model.next_states])
    by_outcome = model.probabilities * (model.rewards + following)
    return np.add.reduceat(by_outcome, model.first).reshape(model.num_states, model.num_actions)


def differential_td(
    values: Array, average_reward: float, states: Array, rewards: Array, *, step_size: float, average_step_size: float
) -> tuple[Array, float]:
    """(values, average reward) after learning from states [T + 1] and rewards [T] that a policy met:
    delta = R - Rbar + V(S') - V(S), the book's (10.10); V(S) <- V(S) + alpha delta; Rbar <- Rbar + beta delta."""
    values = values.copy()
    for t, reward in enumerate(rewards):
        error = reward - average_reward + values[states[t + 1]] - values[states[t]]
        values[states[t]] += step_size * error
        average_reward += average_step_size * error
    return values, float(average_reward)
