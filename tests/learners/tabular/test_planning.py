"""Exact solutions: Bellman's equations, value and policy iteration against each other and against known answers."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from rollcall.learners.tabular import planning
from rollcall.learners.tabular.model import Model
from rollcall.learners.tabular.planning import NoOptimum
from tests.learners.tabular.worlds import CLIFF, LAKE, TAXI, model_of, random_model, random_policy, random_walk, uniform


def literal_backup(model: Model, values: np.ndarray, discount: float) -> np.ndarray:
    """(4.6) as it is written."""
    q = np.zeros((model.num_states, model.num_actions))
    for s, a in itertools.product(range(model.num_states), range(model.num_actions)):
        for i in range(*model.outcomes(s, a).indices(len(model.rewards))):
            following = 0.0 if model.terminated[i] else values[model.next_states[i]]
            q[s, a] += model.probabilities[i] * (model.rewards[i] + discount * following)
    return q


@pytest.mark.parametrize("seed", range(5))
def test_a_backup_is_the_sum_over_outcomes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, values = random_model(rng, end=0.3), rng.normal(size=6)
    np.testing.assert_allclose(model.backup(values, 0.9), literal_backup(model, values, 0.9), atol=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_the_closed_form_satisfies_bellmans_equation_and_is_where_evaluation_settles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    policy = random_policy(rng, model)
    values = planning.closed_form(model, policy, 0.95)
    np.testing.assert_allclose(values, (policy * literal_backup(model, values, 0.95)).sum(1), atol=1e-12)
    np.testing.assert_allclose(planning.policy_evaluation(model, policy, 0.95)[0], values, atol=1e-10)


@pytest.mark.parametrize("discount", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("env", [LAKE, CLIFF, TAXI, "FrozenLake8x8-v1"])
def test_value_iteration_ends_in_the_closed_form_of_its_greedy_policy(env: str, discount: float) -> None:
    model = model_of(env)
    found = planning.value_iteration(model, discount)
    exact = planning.closed_form(model, found.policy, discount)
    reached = model.reachable()
    np.testing.assert_allclose(found.values[reached], exact[reached], rtol=0, atol=1e-10)


@pytest.mark.parametrize("env", [LAKE, CLIFF, TAXI])
def test_policy_iteration_finds_the_same_optimum(env: str) -> None:
    model = model_of(env)
    found, other = planning.policy_iteration(model, 0.95), planning.optimum(model, 0.95)
    np.testing.assert_allclose(found.values[model.reachable()], other.values[model.reachable()], atol=1e-10)
    assert found.iterations < 20 < other.iterations or env != LAKE


def test_no_policy_of_a_small_model_is_better_than_the_optimum() -> None:
    model = random_model(np.random.default_rng(3), num_states=4, num_actions=2)
    best = planning.optimum(model, 0.9).values
    choices = [np.eye(2)[list(actions)] for actions in itertools.product(range(2), repeat=4)]
    np.testing.assert_allclose(np.max([planning.closed_form(model, p, 0.9) for p in choices], 0), best, atol=1e-12)


def test_known_optima() -> None:
    lake, cliff, taxi = map(model_of, (LAKE, CLIFF, TAXI))
    assert lake.start @ planning.optimum(lake, 1.0).values == pytest.approx(float(Fraction(14, 17)), abs=1e-12)
    assert cliff.start @ planning.optimum(cliff, 1.0).values == pytest.approx(-13.0, abs=1e-12)
    assert taxi.start @ planning.optimum(taxi, 1.0).values == pytest.approx(7.93, abs=1e-12)
    assert lake.start @ planning.within(lake, 100) == pytest.approx(0.74419, abs=1e-5)  # the limit of its episodes


def test_the_random_walks_values_are_known() -> None:
    walk = random_walk()
    np.testing.assert_allclose(planning.closed_form(walk, uniform(walk), 1.0), np.arange(1, 6) / 6, atol=1e-14)


def test_where_an_episode_terminates_nothing_follows() -> None:
    # CliffWalking's table has outcomes of the goal, too, as if one went on from there.
    cliff = model_of(CLIFF)
    best = planning.optimum(cliff, 1.0).values
    assert best[35] == -1.0 and bool(cliff.ends()[47])
    assert cliff.backup(best, 1.0)[35].max() == -1.0


def test_undiscounted_the_policy_moves_on_though_waiting_keeps_its_chances() -> None:
    # Without slipping every state that can reach the goal is worth 1, whatever is done first: greedy alone may walk
    # in circles.
    lake = model_of("FrozenLake8x8-v1", is_slippery=False)
    best = planning.optimum(lake, 1.0)
    assert lake.start @ planning.within(lake, 14, best.policy) == 1.0  # 14 steps are the shortest way


def test_values_without_end_are_refused() -> None:
    for_ever = Model.of_table({0: {0: [(1.0, 0, 1.0, False)]}}, np.ones(1))
    with pytest.raises(NoOptimum):
        planning.optimum(for_ever, 1.0, max_sweeps=1000)
    assert planning.optimum(for_ever, 0.9).values[0] == pytest.approx(10.0)
    with pytest.raises(NoOptimum, match="from state 0"):
        planning.closed_form(for_ever, np.ones((1, 1)), 1.0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({0: {0: [(0.5, 0, 0.0, True)]}}, "sum to 0.5"),
        ({0: {0: [(1.0, 7, 0.0, True)]}}, "does not have"),
        ({0: {0: [(1.0, 0, 0.0, True)]}, 1: {}}, "state 1"),
    ],
)
def test_a_table_that_is_none_is_refused(
    table: dict[int, dict[int, list[tuple[float, int, float, bool]]]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Model.of_table(table, np.full(len(table), 1 / len(table)))


def test_a_policys_return_within_a_horizon_is_that_of_a_loop_over_distributions() -> None:
    lake = model_of(LAKE)
    policy = planning.optimum(lake, 0.99).policy
    here, success = lake.start.copy(), 0.0
    for _ in range(100):
        success += float(here @ (policy * lake.expected_rewards()).sum(1))
        here = here @ lake.transitions(policy)
    assert lake.start @ planning.within(lake, 100, policy) == pytest.approx(success, abs=1e-12)
