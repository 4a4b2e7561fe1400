"""Bandits: each rule against its definition, and the ten-armed test bed of the book's section 2.3."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rollcall.learners.tabular.bandits.epsilon_greedy import EpsilonGreedy
from rollcall.learners.tabular.bandits.gradient import GradientBandit
from rollcall.learners.tabular.bandits.greedy import Greedy
from rollcall.learners.tabular.bandits.thompson import Thompson
from rollcall.learners.tabular.bandits.ucb import UCB, upper_bounds
from rollcall.learners.tabular.test_bed import SampleAverages, TestBed, argmax

BANDITS: tuple[Any, ...] = (Greedy, EpsilonGreedy, UCB, GradientBandit, Thompson)
PROBLEMS, PULLS = 2000, 1000


def played(kind: Any, *, problems: int, pulls: int, seed: int = 0, mean: float = 0.0, **settings: Any) -> Any:
    """(regret in all, share of optimal arms in the last hundredth), means over the problems."""
    test_bed = TestBed.drawn(problems, 10, np.random.default_rng(seed), mean=mean)
    method, rng = kind(problems, 10, kind.Config(**settings)), np.random.default_rng(seed + 1)
    regret, optimal = np.zeros(problems), []
    for _ in range(pulls):
        arms = method.choose(rng)
        method.learn(arms, test_bed.pull(arms, rng))
        regret += test_bed.regret(arms)
        optimal.append(test_bed.optimal(arms).mean())
    return float(regret.mean()), float(np.mean(optimal[-max(1, pulls // 100) :]))


def test_estimates_are_the_means_of_what_each_arm_gave() -> None:
    rng, estimates = np.random.default_rng(0), SampleAverages(2, 3)
    given: dict[tuple[int, int], list[float]] = {}
    for _ in range(50):
        arms, rewards = rng.integers(3, size=2), rng.normal(size=2)
        estimates.learn(arms, rewards)
        for problem in range(2):
            given.setdefault((problem, int(arms[problem])), []).append(rewards[problem])
    for (problem, arm), seen in given.items():
        assert estimates.q[problem, arm] == pytest.approx(np.mean(seen))


def test_a_constant_step_size_weighs_rewards_by_their_age() -> None:
    estimates = SampleAverages(1, 1, initial=2.0, step_size=0.5)
    for reward in (1.0, 3.0):
        estimates.learn(np.array([0]), np.array([reward]))
    assert estimates.q[0, 0] == 0.25 * 2 + 0.25 * 1 + 0.5 * 3  # the book's (2.6)


def test_upper_bounds_fall_with_the_pulls_of_an_arm_and_are_infinite_before() -> None:
    bounds = upper_bounds(np.array([0.5, 0.5, 9.0]), np.array([1, 4, 0]), 100, 2.0)
    np.testing.assert_allclose(bounds, [0.5 + 2 * np.sqrt(np.log(100)), 0.5 + np.sqrt(np.log(100)), np.inf])
    method, rng = UCB(3, 5, UCB.Config()), np.random.default_rng(0)
    first = []
    for _ in range(5):
        first.append(method.choose(rng))
        method.learn(first[-1], rng.normal(size=3))
    assert (np.sort(first, axis=0) == np.arange(5)[:, None]).all()  # every arm once before any twice


def test_the_gradient_bandit_climbs_along_the_gradient_of_the_expected_reward() -> None:
    """The mean of (2.12) over arms and rewards is the exact gradient of sum_a pi(a) q(a), whatever the baseline."""
    preferences, means = np.array([0.2, -0.4, 0.1]), np.array([1.0, 0.5, -2.0])
    chances = np.exp(preferences) / np.exp(preferences).sum()
    exact = chances * (means - chances @ means)
    for baseline in (True, False):
        moves = np.zeros(3)
        for arm in range(3):
            method = GradientBandit(1, 3, GradientBandit.Config(step_size=1.0, baseline=baseline))
            start = {"preferences": preferences[None].copy(), "mean": np.array([0.7]), "pulls": np.array([10**12])}
            method.load(start)
            method.learn(np.array([arm]), means[[arm]])
            moves += chances[arm] * (method.arrays()["preferences"][0] - preferences)
        np.testing.assert_allclose(moves, exact, atol=1e-9)


def test_thompsons_posterior_is_bayes_rule_on_a_grid() -> None:
    method = Thompson(1, 1, Thompson.Config(prior_mean=0.5, prior_std=2.0, reward_std=1.5))
    rewards, grid = np.random.default_rng(0).normal(1.0, 1.5, size=6), np.linspace(-15, 15, 20_001)
    for reward in rewards:
        method.learn(np.array([0]), np.array([reward]))
    logs = -(((grid - 0.5) / 2.0) ** 2) / 2 - (((rewards[:, None] - grid) / 1.5) ** 2).sum(0) / 2
    weights = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
    mean, std = method.posterior()
    assert mean[0, 0] == pytest.approx(weights @ grid, abs=1e-6)
    assert std[0, 0] == pytest.approx(np.sqrt(weights @ (grid - weights @ grid) ** 2), abs=1e-6)


def test_of_equal_arms_each_is_chosen() -> None:
    chosen = argmax(np.array([[1.0, 1.0, 0.0]] * 3000), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(chosen, minlength=3) / 3000, [0.5, 0.5, 0.0], atol=0.04)


def test_on_the_ten_armed_test_bed_ucb_regrets_less_than_epsilon_greedy_and_greedy_most() -> None:
    """The mean over 2,000 problems of 1,000 pulls, seed 0. A mean's standard error is about 2 at the most."""
    found = {kind: played(kind, problems=PROBLEMS, pulls=PULLS) for kind in (EpsilonGreedy, UCB)}
    assert found[UCB][0] < 0.7 * found[EpsilonGreedy][0]
    # The book's figure 2.2: epsilon = 0.1 takes the best arm about 80 % of the time at last.
    assert found[EpsilonGreedy][1] == pytest.approx(0.8, abs=0.03)


def test_greedy_gets_stuck_optimism_does_not_and_thompson_regrets_least() -> None:
    size = {"problems": 500, "pulls": 600}
    greedy, _ = played(Greedy, **size)
    optimistic, late = played(Greedy, initial_value=5.0, step_size=0.1, **size)
    thompson, _ = played(Thompson, **size)
    exploring, _ = played(EpsilonGreedy, **size)
    assert thompson < exploring < greedy
    assert optimistic < greedy and late > 0.7


def test_a_gradient_bandit_needs_its_baseline_where_rewards_are_far_from_zero() -> None:
    # The book's figure 2.5: means around 4, step size 0.4.
    size: dict[str, Any] = {"problems": 300, "pulls": 600, "mean": 4.0, "step_size": 0.4}
    with_baseline, without = (played(GradientBandit, baseline=baseline, **size)[1] for baseline in (True, False))
    assert with_baseline > without + 0.15


@pytest.mark.parametrize("kind", BANDITS, ids=lambda kind: kind.__name__)
def test_what_was_learnt_goes_through_a_checkpoint(kind: Any) -> None:
    rng, method = np.random.default_rng(0), kind(4, 3, kind.Config())
    for _ in range(20):
        arms = method.choose(rng)
        method.learn(arms, arms + rng.normal(size=4))
    other = kind(4, 3, kind.Config())
    other.load({name: array.copy() for name, array in method.arrays().items()})
    for seed in range(5):
        one, two = (bandit.choose(np.random.default_rng(seed)) for bandit in (method, other))
        np.testing.assert_array_equal(one, two)
        method.learn(one, one + 1.0)
        other.learn(two, two + 1.0)
