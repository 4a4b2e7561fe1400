"""Linear function approximation: equal to the table on one-hot features, at the TD fixed point on policy, and divergent
where function approximation, bootstrapping and learning off policy meet."""

from __future__ import annotations

import numpy as np
import pytest

from rollcall.learners.tabular import linear, planning, prediction
from rollcall.learners.tabular.average_reward import going_on, stationary
from rollcall.learners.tabular.linear import Baird, Step
from tests.learners.tabular.worlds import played, random_model, random_policy, random_walk, uniform


def test_on_one_hot_features_it_is_the_table() -> None:
    walk = random_walk()
    episode, values, one_hot = played(walk, uniform(walk), np.random.default_rng(0)), np.full(5, 0.5), np.eye(5)
    weights = values
    for t in range(len(episode)):
        last = t == len(episode) - 1
        following = np.zeros(5) if last else one_hot[episode.states[t + 1]]
        step = Step(one_hot[episode.states[t]], episode.rewards[t], following)
        weights = linear.semi_gradient_td(weights, step, 0.1, 0.9)
    np.testing.assert_allclose(weights, prediction.td(values, episode, 0.1, 0.9))


def test_the_fixed_point_of_one_hot_features_is_the_exact_value() -> None:
    rng = np.random.default_rng(0)
    model = random_model(rng)
    policy = random_policy(rng, model)
    rewards = (policy * model.expected_rewards()).sum(1)
    mu = stationary(going_on(model, policy))
    found = linear.fixed_point(np.eye(6), model.transitions(policy), rewards, mu=mu, discount=0.9)
    np.testing.assert_allclose(found, planning.closed_form(model, policy, 0.9), atol=1e-10)


def test_on_policy_the_expected_update_ends_at_the_fixed_point_and_within_its_bound() -> None:
    """The bound is the book's (9.14): the value error there is at most 1 / (1 - gamma) times the smallest one."""
    rng = np.random.default_rng(1)
    model = random_model(rng, end=0.0)
    policy, features = random_policy(rng, model), rng.normal(size=(6, 3))
    transitions, rewards = model.transitions(policy), (policy * model.expected_rewards()).sum(1)
    mu, weights = stationary(transitions), np.zeros(3)
    for _ in range(20_000):
        weights = linear.expected_semi_gradient(
            weights, features, transitions, rewards, mu=mu, step_size=0.05, discount=0.9
        )
    fixed = linear.fixed_point(features, transitions, rewards, mu=mu, discount=0.9)
    np.testing.assert_allclose(weights, fixed, atol=1e-8)
    values, root = planning.closed_form(model, policy, 0.9), np.sqrt(mu)
    nearest, *_ = np.linalg.lstsq(features * root[:, None], values * root, rcond=None)
    errors = [float(mu @ (features @ w - values) ** 2) for w in (fixed, nearest)]
    assert errors[1] <= errors[0] <= errors[1] / (1 - 0.9) + 1e-9


def test_bairds_weights_diverge_off_policy_with_and_without_noise() -> None:
    """The book's figure 11.2, both sides; the values are 0, and weights of 0 have them."""
    baird = Baird()
    weights = baird.weights
    for step in baird.play(1000, np.random.default_rng(0)):
        weights = linear.semi_gradient_td(weights, step, baird.step_size, baird.discount)
    assert np.linalg.norm(weights) > 5 * np.linalg.norm(baird.weights)
    norms, weights, alike = [], baird.weights, np.full(7, 1 / 7)
    for _ in range(3000):
        weights = linear.expected_semi_gradient(
            weights, baird.features, baird.transitions, np.zeros(7), mu=alike, step_size=0.01, discount=0.99
        )
        norms.append(float(np.linalg.norm(weights)))
    assert norms[-1] > 4 * norms[1000] > 4 * norms[0]
    # The same expected update under the target policy's own distribution, the seventh state alone, comes to rest.
    on_policy, weights = np.eye(7)[6], baird.weights
    for _ in range(20_000):
        weights = linear.expected_semi_gradient(
            weights, baird.features, baird.transitions, np.zeros(7), mu=on_policy, step_size=0.05, discount=0.99
        )
    assert abs(float(baird.features[6] @ weights)) < 0.1


def test_gradient_correction_keeps_bairds_weights_bounded() -> None:
    """The book's figure 11.5: step sizes 0.005 and 0.05. The projected Bellman error falls, and no weight runs away."""
    baird = Baird()
    weights, correction = baird.weights, np.zeros(8)
    for step in baird.play(20_000, np.random.default_rng(0)):
        weights, correction = linear.tdc(
            weights, correction, step, step_size=0.005, correction_step_size=0.05, discount=baird.discount
        )
    assert np.linalg.norm(weights) < np.linalg.norm(baird.weights)
    assert np.abs(baird.features @ weights).max() == pytest.approx(0.0, abs=2.5)
