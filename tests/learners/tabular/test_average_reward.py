"""The average-reward form: exact gains against simulation and each other, and what the differential methods learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular import average_reward, planning
from rollcall.learners.tabular.methods.differential_sarsa import DifferentialSarsa
from rollcall.learners.tabular.model import Model, Outcome
from tests.learners.tabular.worlds import learn, played, random_model, random_policy

SERVERS, PRIORITIES = 10, (1.0, 2.0, 4.0, 8.0)


def queue() -> Model:
    """The book's example 10.2: ten servers, each free again with probability 0.06 a step; a customer who pays 1, 2, 4
    or 8 is turned away (0) or served (1), if there is a server. A state is (free servers, customer)."""

    def binomial(n: int, k: int) -> float:
        return float(np.prod([(n - i) / (i + 1) for i in range(k)])) * 0.06**k * 0.94 ** (n - k)

    table: dict[int, dict[int, list[Outcome]]] = {}
    for free, customer in itertools.product(range(SERVERS + 1), range(4)):
        for action in range(2):
            served = action == 1 and free > 0
            left = free - served
            busy = SERVERS - left
            outcomes = [
                (binomial(busy, k) / 4, (left + k) * 4 + following, PRIORITIES[customer] * served, False)
                for k in range(busy + 1)
                for following in range(4)
            ]
            table.setdefault(free * 4 + customer, {})[action] = outcomes
    start = np.zeros(44)
    start[SERVERS * 4 :] = 0.25
    return Model.of_table(table, start)


def thresholds(policy: Array) -> list[int]:
    """Of each customer, with how many free servers he is served first; one more than there are: never."""
    serves = np.vstack([policy.argmax(1).reshape(SERVERS + 1, 4)[1:], np.ones((1, 4), int)])
    return [int(serves[:, customer].argmax()) + 1 for customer in range(4)]


def test_the_average_reward_is_that_of_a_long_run() -> None:
    """Seed 0, 20,000 steps of a model with rewards of scale 1; neighbouring ones hang together: 0.05 is enough."""
    rng = np.random.default_rng(0)
    model = random_model(rng, end=0.0)
    policy = random_policy(rng, model)
    found = average_reward.evaluate(model, policy)
    assert found.average_reward == pytest.approx(played(model, policy, rng, max_steps=20_000).rewards.mean(), abs=0.05)


def test_differential_values_satisfy_their_bellman_equation_and_are_the_limit_of_discounted_ones() -> None:
    rng = np.random.default_rng(1)
    model = random_model(rng, end=0.0)
    policy = random_policy(rng, model)
    found = average_reward.evaluate(model, policy)
    q = average_reward.differential_backup(model, found.values)
    np.testing.assert_allclose((policy * q).sum(1) - found.average_reward, found.values, atol=1e-10)
    discount = 1 - 1e-7  # v_gamma(s) = r(pi) / (1 - gamma) + v(s) + O(1 - gamma)
    discounted = planning.closed_form(model, policy, discount)
    np.testing.assert_allclose(discounted - discounted[0], found.values - found.values[0], atol=1e-5)


def test_no_policy_has_a_larger_average_reward_than_the_optimum() -> None:
    model = random_model(np.random.default_rng(2), num_states=4, num_actions=2)
    best = average_reward.optimal(model)
    gains = [
        average_reward.evaluate(model, np.eye(2)[list(actions)]).average_reward
        for actions in itertools.product(range(2), repeat=4)
    ]
    assert best.average_reward == pytest.approx(max(gains))


def test_differential_td_finds_average_and_values() -> None:
    """Seed 3, 60,000 steps: with step sizes this small the noise that is left is below 0.1."""
    rng = np.random.default_rng(3)
    model = random_model(rng, num_states=4, end=0.0)
    policy = random_policy(rng, model)
    exact, episode = average_reward.evaluate(model, policy), played(model, policy, rng, max_steps=60_000)
    values, average = average_reward.differential_td(
        np.zeros(4), 0.0, episode.states, episode.rewards, step_size=0.01, average_step_size=0.001
    )
    assert average == pytest.approx(exact.average_reward, abs=0.05)
    np.testing.assert_allclose(values - values.mean(), exact.values - exact.values.mean(), atol=0.15)


def test_in_the_queue_the_optimum_serves_the_poor_only_when_many_are_free_and_differential_sarsa_comes_near() -> None:
    model = queue()
    best = average_reward.optimal(model)
    needed = thresholds(best.policy)
    assert needed[3] == 1 and needed == sorted(
        needed, reverse=True
    )  # who pays 8 always; the less, the more must be free
    method, _ = learn(model, DifferentialSarsa, 1, limit=100_000, step_size=0.02, average_step_size=0.01, epsilon=0.1)
    learnt = average_reward.evaluate(model, planning.greedy(method.values))
    assert learnt.average_reward > 0.97 * best.average_reward
