"""Control: each method's update against its definition, the relations between the methods, and what they learn."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.tabular import planning
from rollcall.learners.tabular.action_values import ControlSettings, Explorer
from rollcall.learners.tabular.methods.differential_sarsa import DifferentialSarsa
from rollcall.learners.tabular.methods.double_q_learning import DoubleQLearning
from rollcall.learners.tabular.methods.dyna_q import DynaQ
from rollcall.learners.tabular.methods.expected_sarsa import ExpectedSarsa
from rollcall.learners.tabular.methods.monte_carlo import MonteCarlo
from rollcall.learners.tabular.methods.q_actor_critic import QActorCritic, softmax
from rollcall.learners.tabular.methods.q_learning import QLearning
from rollcall.learners.tabular.methods.sarsa import Sarsa
from rollcall.learners.tabular.methods.sarsa_lambda import SarsaLambda
from rollcall.learners.tabular.model import Model
from rollcall.learners.tabular.play import play_episode
from tests.learners.tabular.worlds import CLIFF, LAKE, TAXI, DrawnEnv, learn, model_of, random_model

METHODS: tuple[Any, ...] = (
    *(QLearning, Sarsa, ExpectedSarsa, DoubleQLearning, MonteCarlo, SarsaLambda, DynaQ, DifferentialSarsa),
    QActorCritic,
)
Q = np.array([[0.5, -1.0], [2.0, 1.0], [0.0, 3.0]])


class Told:
    """An explorer that takes the actions that it is told, and draws the numbers that it is told."""

    def __init__(self, *actions: int, epsilon: float = 0.2) -> None:
        self.epsilon = epsilon
        self.rng = np.random.default_rng(0)
        self._actions = list(actions)

    def choose(self, row: Array) -> int:
        return self._actions.pop(0)

    def probabilities(self, row: Array) -> Array:
        return Explorer(self.rng, self.epsilon).probabilities(row)


def made(kind: Any, **settings: Any) -> Any:
    """With Q as its table."""
    method = kind(3, 2, kind.Config(step_size=0.1, discount=0.9, **settings))
    method.load({**method.arrays(), **{name: Q.copy() for name in method.arrays() if name in ("q", "q_1", "q_2")}})
    return method


def after(method: Any, *actions: int, terminated: bool = False) -> float:
    """Q(0, 1) after one step from there to state 2 with reward 1."""
    explorer: Any = Told(1, *actions)
    assert method.begin(0, explorer) == 1
    method.step(0, 1, 1.0, 2, terminated=terminated, explorer=explorer)
    method.end(None if terminated else 2, explorer)
    return float(method.values[0, 1])


@pytest.mark.parametrize(
    ("kind", "following"),
    [(QLearning, 3.0), (Sarsa, 0.0), (ExpectedSarsa, 0.1 * 0.0 + 0.9 * 3.0), (MonteCarlo, 0.1 * 0.0 + 0.9 * 3.0)],
)
def test_an_update_is_a_step_towards_reward_and_what_follows(kind: Any, following: float) -> None:
    own = {"step_size_power": 0.0} if kind is MonteCarlo else {}
    assert after(made(kind, **own), 0) == pytest.approx(-1 + 0.1 * (1 + 0.9 * following - -1))
    assert after(made(kind, **own), 0, terminated=True) == pytest.approx(-1 + 0.1 * (1 - -1))


def test_sarsa_learns_from_the_action_that_is_taken_next() -> None:
    assert after(made(Sarsa), 1) == pytest.approx(-1 + 0.1 * (1 + 0.9 * 3.0 - -1))


def test_double_q_learning_asks_one_table_which_and_the_other_how_much() -> None:
    method = made(DoubleQLearning)
    method.load({**method.arrays(), "q_1": Q.copy(), "q_2": -Q})
    after(method, 0)
    first, second = method.arrays()["q_1"], method.arrays()["q_2"]
    if first[0, 1] != Q[0, 1]:  # argmax of the first is action 1, which the second values at -3
        assert first[0, 1] == pytest.approx(-1 + 0.1 * (1 + 0.9 * -3.0 - -1))
        assert (second == -Q).all()
    else:  # argmax of the second is action 0, which the first values at 0
        assert second[0, 1] == pytest.approx(1 + 0.1 * (1 + 0.9 * 0.0 - 1))


def test_n_step_sarsa_sums_rewards_and_learns_the_rest_when_the_episode_is_over() -> None:
    method = made(Sarsa, n_step=2)
    explorer: Any = Told(1, 0, 1, 0)
    method.begin(0, explorer)
    method.step(0, 1, 1.0, 1, terminated=False, explorer=explorer)
    assert (method.values == Q).all()  # its return is not complete
    method.step(1, 0, 2.0, 2, terminated=False, explorer=explorer)
    assert method.values[0, 1] == pytest.approx(-1 + 0.1 * (1 + 0.9 * 2 + 0.81 * Q[2, 1] - -1))
    method.step(2, 1, 4.0, 0, terminated=True, explorer=explorer)
    method.end(None, explorer)
    assert method.values[1, 0] == pytest.approx(2 + 0.1 * (2 + 0.9 * 4 - 2))
    assert method.values[2, 1] == pytest.approx(3 + 0.1 * (4 - 3))


@pytest.mark.parametrize("truncated", [False, True])
def test_n_step_sarsa_of_more_steps_than_there_are_is_monte_carlo(truncated: bool) -> None:
    model = random_model(np.random.default_rng(0), end=0.0 if truncated else 0.3)
    long, _ = learn(model, Sarsa, 1, limit=20, n_step=1000, step_size=1e-6, epsilon=1.0)
    whole, _ = learn(model, MonteCarlo, 1, limit=20, visits="every", step_size=1e-6, step_size_power=0.0, epsilon=1.0)
    np.testing.assert_allclose(long.values, whole.values, rtol=1e-4)


def test_without_traces_sarsa_lambda_is_sarsa_and_without_planning_dyna_q_is_q_learning() -> None:
    model = random_model(np.random.default_rng(1))
    short: dict[str, Any] = {"episodes": 20, "limit": 50}
    plain, traced = learn(model, Sarsa, **short)[0], learn(model, SarsaLambda, lam=0.0, **short)[0]
    np.testing.assert_allclose(plain.values, traced.values, atol=1e-14)
    plan, direct = learn(model, DynaQ, planning_steps=0, **short)[0], learn(model, QLearning, **short)[0]
    np.testing.assert_array_equal(plan.values, direct.values)


@pytest.mark.parametrize(("traces", "again"), [("accumulating", 1 + 0.45**2), ("replacing", 1.0)])
def test_traces_of_a_pair_that_is_visited_again_add_up_or_are_replaced(traces: str, again: float) -> None:
    method = SarsaLambda(
        2, 1, SarsaLambda.Config.model_validate({"step_size": 0.5, "discount": 0.9, "lam": 0.5, "traces": traces})
    )
    explorer = Explorer(np.random.default_rng(0), 0.0)
    method.begin(0, explorer)
    method.step(0, 0, 0.0, 1, terminated=False, explorer=explorer)
    method.step(1, 0, 0.0, 0, terminated=False, explorer=explorer)
    method.step(0, 0, 1.0, 1, terminated=True, explorer=explorer)
    np.testing.assert_allclose(method.values[:, 0], [0.5 * again, 0.5 * 0.45])


def test_dyna_q_remembers_how_often_each_outcome_was_met_also_after_a_checkpoint() -> None:
    method, explorer = DynaQ(2, 1, DynaQ.Config()), Explorer(np.random.default_rng(0), 0.0)
    for reward in [1.0, 0.0, 0.0, 0.0]:
        method.step(0, 0, reward, 1, terminated=True, explorer=explorer)
    other = DynaQ(2, 1, DynaQ.Config())
    other.load(method.arrays())
    for remembers in (method, other):
        drawn = [remembers._imagined((0, 0), explorer.rng)[0] for _ in range(4000)]
        assert np.mean(drawn) == pytest.approx(0.25, abs=0.03)  # four standard errors


def test_the_policy_gradient_of_a_softmax_is_that_of_finite_differences() -> None:
    method = made(QActorCritic, actor_step_size=1.0, baseline=False)
    preferences = np.array([[0.3, -0.2], [0.0, 0.0], [0.0, 0.0]])
    method.load({**method.arrays(), "preferences": preferences.copy()})
    method.step(0, 1, 1.0, 2, terminated=True, explorer=Explorer(np.random.default_rng(0), 0.0))
    moved = method.values[0] - preferences[0]
    for a in range(2):
        nudge = np.eye(2)[a] * 1e-6
        slope = np.log(softmax(preferences[0] + nudge)[1] / softmax(preferences[0] - nudge)[1]) / 2e-6
        assert moved[a] == pytest.approx(Q[0, 1] * slope, rel=1e-6)


def test_exploration_is_epsilon_greedy_and_equals_are_drawn_alike() -> None:
    """Seed 0, 20,000 draws; four standard errors are 0.014."""
    row, explorer = np.array([1.0, 3.0, 3.0, 0.0]), Explorer(np.random.default_rng(0), 0.4)
    counts = np.bincount([explorer.choose(row) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(explorer.probabilities(row), [0.1, 0.4, 0.4, 0.1])
    np.testing.assert_allclose(counts, [0.1, 0.4, 0.4, 0.1], atol=0.014)


def test_epsilon_falls_as_it_is_told() -> None:
    linear = ControlSettings(epsilon=1.0, epsilon_final=0.2, epsilon_fraction=0.5)
    assert [linear.epsilon_at(k, 100) for k in (0, 25, 50, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    glie = ControlSettings(epsilon=1.0, exploration="glie")
    assert [glie.epsilon_at(k, 100) for k in (0, 1, 9)] == pytest.approx([1.0, 0.5, 0.1])
    with pytest.raises(ValidationError, match="leave it out"):
        ControlSettings(exploration="glie", epsilon_final=0.1)


# What is learnt.

# Optimistic: every action is tried until it is known to be worse.
LAKE_SETTINGS: dict[str, Any] = {
    "discount": 0.99,
    "step_size": 0.05,
    "initial_value": 1.0,
    "epsilon": 0.1,
    "epsilon_final": 0.01,
}


def value_of(model: Model, values: Array, discount: float) -> float:
    """Of the first state, under the policy that is greedy with respect to these action values, exactly."""
    policy = planning.greedy(values)
    return float(model.start @ planning.closed_form(model, policy, discount, among=model.reachable(policy)))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", [QLearning, Sarsa])
def test_on_the_lake_the_learnt_policy_is_within_two_percent_of_the_optimum(kind: Any, seed: int) -> None:
    """With the settings of the recipes, and fewer episodes; in exact values, for each seed."""
    lake = model_of(LAKE)
    method, _ = learn(lake, kind, 4000, seed=seed, limit=100, epsilon_fraction=0.5, **LAKE_SETTINGS)
    best = planning.optimum(lake, 0.99)
    assert value_of(lake, method.values, 0.99) >= 0.98 * float(lake.start @ best.values)


def test_by_the_cliff_sarsa_learns_the_safe_way_and_q_learning_the_short_one() -> None:
    """The book's example 6.6 over 5 runs of 500 episodes: while both explore, Sarsa gets more; of the policies that
    explore no more, Q-learning's is the optimum."""
    cliff = model_of(CLIFF)
    settings: dict[str, Any] = {"discount": 1.0, "step_size": 0.5, "epsilon": 0.1}
    online, values = {}, {}
    for kind in (QLearning, Sarsa):
        runs = [learn(cliff, kind, 500, seed=seed, **settings) for seed in range(5)]
        online[kind] = np.mean([[episode.total for episode in played[100:]] for _, played in runs])
        values[kind] = [method.values for method, _ in runs]
    assert online[QLearning] < -40 < -35 < online[Sarsa]
    assert np.mean([value_of(cliff, q, 1.0) == -13.0 for q in values[QLearning]]) > 0.8
    assert online[Sarsa] > online[QLearning] + 10


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_every_method_learns_the_way_on_a_lake_that_is_not_slippery(kind: Any) -> None:
    lake = model_of(LAKE, is_slippery=False)
    own: dict[str, Any] = {"exploration": "glie"} if kind is MonteCarlo else {"epsilon_final": 0.05}
    own |= {"actor_step_size": 5.0, "baseline": False} if kind is QActorCritic else {}
    method, _ = learn(lake, kind, 1500, limit=100, discount=0.95, epsilon=1.0, **own)
    best = planning.optimum(lake, 0.95)
    assert value_of(lake, method.values, 0.95) == pytest.approx(float(lake.start @ best.values))


def test_planning_needs_fewer_episodes() -> None:
    taxi = model_of(TAXI)
    settings: dict[str, Any] = {"discount": 0.99, "step_size": 0.5, "epsilon": 0.1}
    late = {n: learn(taxi, DynaQ, 150, limit=200, planning_steps=n, **settings)[1][-50:] for n in (0, 5)}
    direct, planned = (np.mean([episode.total for episode in played]) for played in late.values())
    assert planned > direct + 50


def test_the_maximum_of_noise_misleads_q_learning_and_double_q_learning_hardly() -> None:
    """The book's example 6.7: from A (0) left leads to B (1), from where ten actions give N(-0.1, 1) and an end; right
    ends with 0. Left is worth -0.1, and looks better to a maximum. 300 episodes, 100 runs."""

    class Noisy:
        def __init__(self, seed: int) -> None:
            self._rng, self._state = np.random.default_rng(seed), 0

        def reset(self, *, seed: int | None = None) -> tuple[int, Any]:
            self._state = 0
            return 0, {}

        def step(self, action: int) -> tuple[int, float, bool, bool, Any]:
            if self._state == 1:
                return 2, float(self._rng.normal(-0.1, 1.0)), True, False, {}
            self._state = 1
            return (1, 0.0, False, False, {}) if action == 0 else (2, 0.0, True, False, {})

    def left(kind: Any, runs: int = 30) -> float:
        """The share of runs' last 100 of 200 episodes that took one of the many ways left."""
        taken = []
        for run in range(runs):
            method = kind(3, 10, kind.Config(discount=1.0, epsilon=0.1))
            env, explorer = Noisy(run), Explorer(np.random.default_rng(run), 0.1)
            for number in range(200):
                played = play_episode(env, method, explorer)
                taken += [played.length == 2] if number >= 100 else []
        return float(np.mean(taken))

    assert left(QLearning) > left(DoubleQLearning)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_what_was_learnt_goes_through_a_checkpoint(kind: Any) -> None:
    model = random_model(np.random.default_rng(2))
    method, _ = learn(model, kind, 30)
    other = kind(model.num_states, model.num_actions, kind.Config())
    other.load({name: array.copy() for name, array in method.arrays().items()})
    for learner in (method, other):
        rng, env = np.random.default_rng(5), DrawnEnv(model, seed=5)
        for _ in range(5):
            play_episode(env, learner, Explorer(rng, 0.1))
    np.testing.assert_array_equal(method.values, other.values)


def test_each_method_has_a_file_that_names_it() -> None:
    for kind in METHODS:
        module = importlib.import_module(kind.__module__)
        assert module.TABULAR is kind and kind.__module__.rpartition(".")[2] == kind.Config().name
