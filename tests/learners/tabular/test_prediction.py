"""Prediction from episodes: each method against its definition, the identities between them, and known values."""

from __future__ import annotations

import numpy as np
import pytest

from rollcall.learners.tabular import planning, prediction
from rollcall.learners.tabular.prediction import Episode
from tests.learners.tabular.worlds import episodes, random_model, random_policy, random_walk, uniform

EPISODE = Episode(np.array([0, 1, 0, 2, 1]), np.array([1.0, -2.0, 3.0, 0.5]), terminated=True)
CUT = Episode(EPISODE.states, EPISODE.rewards, terminated=False)
VALUES = np.array([0.3, -0.7, 1.1])


def test_returns_are_discounted_sums() -> None:
    expected = [1 - 2 * 0.9 + 3 * 0.81 + 0.5 * 0.729, -2 + 3 * 0.9 + 0.5 * 0.81, 3 + 0.5 * 0.9, 0.5]
    np.testing.assert_allclose(prediction.returns(EPISODE, 0.9), expected)


def test_first_visits_are_counted_once_an_episode_and_every_visit_each_time() -> None:
    zeros, none = np.zeros(3), np.zeros(3, int)
    g = prediction.returns(EPISODE, 0.9)
    first, visits = prediction.monte_carlo(zeros, none, EPISODE, 0.9)
    np.testing.assert_allclose(first, [g[0], g[1], g[3]])
    assert visits.tolist() == [1, 1, 1]
    every, visits = prediction.monte_carlo(zeros, none, EPISODE, 0.9, first_visit=False)
    np.testing.assert_allclose(every, [(g[0] + g[2]) / 2, g[1], g[3]])
    assert visits.tolist() == [2, 1, 1]
    assert not zeros.any() and not none.any()  # what was given stays


@pytest.mark.parametrize("episode", [EPISODE, CUT], ids=["terminated", "cut off"])
def test_td_is_the_update_for_each_step(episode: Episode) -> None:
    values = VALUES.copy()
    for t, state in enumerate(episode.states[:-1]):
        following = 0.0 if episode.terminated and t == 3 else values[episode.states[t + 1]]
        values[state] += 0.1 * (episode.rewards[t] + 0.9 * following - values[state])
    np.testing.assert_allclose(prediction.td(VALUES, episode, 0.1, 0.9), values)


@pytest.mark.parametrize("episode", [EPISODE, CUT], ids=["terminated", "cut off"])
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_n_step_td_follows_the_books_algorithm(episode: Episode, n: int) -> None:
    """The box of section 7.1, as it is written, tau and all."""
    values, length, time = VALUES.copy(), len(episode), 0
    while True:
        tau = time - n + 1
        if tau >= 0:
            end = min(tau + n, length)
            target = sum(0.9 ** (i - tau - 1) * episode.rewards[i - 1] for i in range(tau + 1, end + 1))
            if tau + n < length or not episode.terminated:
                target += 0.9 ** (end - tau) * values[episode.states[end]]
            values[episode.states[tau]] += 0.1 * (target - values[episode.states[tau]])
        if tau == length - 1:
            break
        time += 1
    np.testing.assert_allclose(prediction.n_step_td(VALUES, episode, n, 0.1, 0.9), values)


@pytest.mark.parametrize("episode", [EPISODE, CUT], ids=["terminated", "cut off"])
def test_one_step_and_no_trace_are_td_and_all_steps_are_monte_carlo(episode: Episode) -> None:
    td = prediction.td(VALUES, episode, 0.1, 0.9)
    np.testing.assert_allclose(prediction.n_step_td(VALUES, episode, 1, 0.1, 0.9), td)
    np.testing.assert_allclose(prediction.td_lambda(VALUES, episode, 0.0, 0.1, 0.9), td)
    tail = episode.tail(VALUES)
    np.testing.assert_allclose(
        prediction.lambda_returns(VALUES, episode, 1.0, 0.9), prediction.returns(episode, 0.9, tail)
    )


@pytest.mark.parametrize("episode", [EPISODE, CUT], ids=["terminated", "cut off"])
def test_lambda_returns_are_the_weighted_mean_of_n_step_returns(episode: Episode) -> None:
    lam, length = 0.8, len(episode)

    def n_step(t: int, n: int) -> float:
        end = min(t + n, length)
        total = sum(0.9**k * episode.rewards[t + k] for k in range(end - t))
        return total + 0.9 ** (end - t) * (episode.tail(VALUES) if end == length else VALUES[episode.states[end]])

    expected = [
        sum((1 - lam) * lam ** (n - 1) * n_step(t, n) for n in range(1, length - t))
        + lam ** (length - t - 1) * n_step(t, length - t)
        for t in range(length)
    ]
    np.testing.assert_allclose(prediction.lambda_returns(VALUES, episode, lam, 0.9), expected)


def test_backward_and_forward_view_agree_where_values_hardly_move_within_an_episode() -> None:
    """To first order in the step size: the values of (12.5) to (12.7) and of the lambda-return, after one episode."""
    step_size, lam = 1e-6, 0.7
    forward = VALUES.copy()
    for t, target in enumerate(prediction.lambda_returns(VALUES, EPISODE, lam, 0.9)):
        forward[EPISODE.states[t]] += step_size * (target - VALUES[EPISODE.states[t]])
    backward = prediction.td_lambda(VALUES, EPISODE, lam, step_size, 0.9)
    np.testing.assert_allclose(backward - VALUES, forward - VALUES, rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize("method", ["first", "every", "td", "n-step", "lambda"])
def test_on_the_random_walk_each_method_finds_the_values(method: str) -> None:
    """Seed 0, 2,000 episodes. The last 1,000 tables are averaged: a constant step size of 0.02 leaves noise in each. A
    returns' standard deviation is 0.5 at the most, so a mean of 1,000 visits is known to 0.02."""
    walk, rng = random_walk(), np.random.default_rng(0)
    values, visits, total = np.full(5, 0.5), np.zeros(5, int), np.zeros(5)
    for number, episode in zip(range(2000), episodes(walk, uniform(walk), rng), strict=False):
        if method in ("first", "every"):
            values, visits = prediction.monte_carlo(values, visits, episode, 1.0, first_visit=method == "first")
        elif method == "td":
            values = prediction.td(values, episode, 0.02, 1.0)
        elif method == "n-step":
            values = prediction.n_step_td(values, episode, 3, 0.02, 1.0)
        else:
            values = prediction.td_lambda(values, episode, 0.5, 0.02, 1.0)
        total += values if number >= 1000 else 0.0
    np.testing.assert_allclose(total / 1000, np.arange(1, 6) / 6, atol=0.04)


def test_no_method_moves_exact_values_in_expectation() -> None:
    """At v_pi the mean of the errors is 0: seed 1, 2,000 episodes; the bound is four standard errors."""
    rng = np.random.default_rng(1)
    model = random_model(rng, end=0.3)
    policy = random_policy(rng, model)
    values = planning.closed_form(model, policy, 0.9)
    moves = []
    for _, episode in zip(range(2000), episodes(model, policy, rng), strict=False):
        targets = prediction.lambda_returns(values, episode, 0.6, 0.9)
        moves.append(targets[0] - values[episode.states[0]])
    assert abs(np.mean(moves)) < 4 * np.std(moves) / np.sqrt(len(moves))
