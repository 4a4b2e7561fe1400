"""IQL's losses against their definitions; and on a set that shows all of a tiny world, against its solution."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcall.cluster.messages.recorded import RecordedEpisodes
from rollcall.learners.algorithm import TARGET, Context, with_own_models
from rollcall.learners.algorithms.control.off_policy.iql import IQL
from rollcall.learners.algorithms.control.off_policy.iql_config import IQLConfig
from rollcall.learners.collators.recorded import RecordedCollator, whole
from rollcall.learners.collective import Collective
from rollcall.learners.data.recorded import RecordedSteps
from rollcall.learners.maths.offline_losses import advantage_weights, expectile_loss
from rollcall.learners.models.networks import build_actor_critic
from rollcall.learners.models.policy_config import PolicyConfig
from tests.experts import recorded, swings

CPU = torch.device("cpu")


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_the_value_that_minimises_the_expectile_loss_is_that_expectile(numbers: list[float], expectile: float) -> None:
    """At the expectile, the weighted errors above and below cancel."""
    numbers_there = torch.tensor(numbers, dtype=torch.float64)
    low, high = min(numbers), max(numbers)
    for _ in range(80):
        middle = (low + high) / 2
        above = sum(max(x - middle, 0.0) for x in numbers) * expectile
        below = sum(max(middle - x, 0.0) for x in numbers) * (1 - expectile)
        low, high = (middle, high) if above > below else (low, middle)
    value = torch.tensor(low, dtype=torch.float64, requires_grad=True)
    expectile_loss(errors=numbers_there - value, expectile=expectile, size=len(numbers)).backward()
    assert value.grad is not None and abs(float(value.grad)) < 1e-6


def test_a_weight_is_the_exponential_of_the_advantage_up_to_the_largest() -> None:
    advantages = torch.tensor([-1.0, 0.0, 1.0, 1e4, 1e38])
    found = advantage_weights(advantages=advantages, inverse_temperature=2.0, largest=50.0).tolist()
    assert found == pytest.approx([math.exp(-2), 1.0, math.exp(2), 50.0, 50.0], rel=1e-5)


@pytest.mark.parametrize("squash", ["clip", "tanh"])
def test_the_loss_is_what_a_loop_over_the_rows_finds(squash: str) -> None:
    env = gym.make("Pendulum-v1")
    policy = PolicyConfig(hidden_sizes=(8,), squash=squash)  # type: ignore[arg-type]
    network = build_actor_critic(env.observation_space, env.action_space, policy, with_critic=True, seed=0)
    algorithm: Any = IQL(IQLConfig(expectile=0.8, inverse_temperature=0.5, discount=0.9, reward_scale=0.1))
    models = with_own_models(algorithm, {"actor_critic": network}, seed=1)
    with torch.no_grad():
        for parameter in models[TARGET + "critic"].parameters():
            parameter.mul_(1.1)  # another one than what follows it
    steps = RecordedSteps.of(recorded("Pendulum-v1", swings, episodes=1, steps=10), [0], network.distribution.from_env)
    rows = RecordedCollator(steps, discount=0.9).collate(range(10), CPU, step=0)
    context = Context(models, torch.Generator(), Collective())
    policy_loss = value_loss = critic_loss = 0.0
    with torch.no_grad():
        for i in range(10):
            shown, following = (
                {"observation": o["observation"][i : i + 1]} for o in (rows.observations, rows.next_observations)
            )
            action = rows.actions[i : i + 1].tanh() if squash == "tanh" else rows.actions[i : i + 1]
            value, after = (float(network.state_values(o)) for o in (shown, following))  # type: ignore[arg-type]
            best = float(models[TARGET + "critic"](shown, action).min())
            target = 0.1 * float(rows.rewards[i]) + float(rows.discounts[i]) * after
            critic_loss += sum(0.5 * (float(q) - target) ** 2 for q in models["critic"](shown, action))
            error = best - value
            value_loss += (0.8 if error > 0 else 0.2) * error**2
            logprob = float(network.distribution.log_prob(network.policy_params(shown), rows.actions[i : i + 1]))
            policy_loss -= math.exp(0.5 * error) * logprob
    found = algorithm.loss(context, whole(rows))
    assert float(found.metrics["value_loss"]) == pytest.approx(value_loss / 10, rel=1e-4)
    assert float(found.metrics["critic_loss"]) == pytest.approx(critic_loss / 10, rel=1e-4)
    assert float(found.loss.detach()) == pytest.approx((policy_loss + value_loss + critic_loss) / 10, rel=1e-4)
    found.loss.backward()
    assert all(parameter.grad is None for parameter in models[TARGET + "critic"].parameters())


def test_better_actions_of_a_mixed_set_are_imitated_and_worse_ones_are_not() -> None:
    """A world of one choice: action 1 earns 1, action 0 nothing, and the set has action 0 four times as often."""
    actions = np.array([1, 0, 0, 0, 0] * 8)
    shown = np.zeros((40, 1), np.float32)
    world = RecordedEpisodes(
        env="world",
        observation_space="",
        action_space="",
        acted_by="unknown",
        observations={"observation": shown},
        actions=actions,
        rewards=actions.astype(np.float32),
        terminated=np.ones(40, bool),
        truncated=np.zeros(40, bool),
        episode_ends=np.arange(1, 41),
        last_observations={"observation": shown},
    )
    spaces = gym.spaces.Box(-1, 1, (1,), np.float32), gym.spaces.Discrete(2)
    network = build_actor_critic(*spaces, PolicyConfig(hidden_sizes=(8,)), with_critic=True, seed=0)
    algorithm: Any = IQL(IQLConfig(expectile=0.9, inverse_temperature=10.0, target_rate=0.1))
    models = with_own_models(algorithm, {"actor_critic": network}, seed=1)
    context = Context(models, torch.Generator(), Collective(), spaces)
    steps = RecordedSteps.of(world, range(40), network.distribution.from_env)
    rows = RecordedCollator(steps, discount=0.99).collate(range(40), CPU, step=0)
    trained = [p for name in ("actor_critic", "critic") for p in models[name].parameters()]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        algorithm.loss(context, whole(rows)).loss.backward()
        optimizer.step()
        with torch.no_grad():
            algorithm.after_step(context)
    one = {"observation": torch.zeros(1, 1)}
    q_values = models["critic"](one)[:, 0].detach().tolist()
    for pair in q_values:
        assert pair == pytest.approx([0.0, 1.0], abs=0.05)
    value = network.state_values(one)
    # tau (1 - V) / 5 = (1 - tau) V 4 / 5 with tau = 0.9
    assert value is not None and float(value.detach()) == pytest.approx(0.9 / (0.9 + 0.4), abs=0.05)
    assert float(network.policy_params(one).detach().softmax(-1)[0, 1]) > 0.95
