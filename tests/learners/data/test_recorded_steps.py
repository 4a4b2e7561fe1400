"""A recorded set as transitions, held against a loop over its episodes; and the losses of those who imitate, against
their definitions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch

from rollcall.cluster.messages.recorded import RecordedEpisodes
from rollcall.learners.algorithm import Context
from rollcall.learners.algorithms.control.imitation.bc import BC
from rollcall.learners.algorithms.control.imitation.bc_config import BCConfig
from rollcall.learners.batches.replay_batch import ReplayMinibatch
from rollcall.learners.collators.recorded import RecordedCollator, whole
from rollcall.learners.collective import Collective
from rollcall.learners.data.recorded import RecordedSteps
from rollcall.learners.maths.distributions import distribution_for
from rollcall.learners.models.networks import ActorCritic, build_actor_critic
from rollcall.learners.models.policy_config import PolicyConfig
from tests.experts import balances, recorded, swings

CPU = torch.device("cpu")


def masked(found: RecordedEpisodes) -> RecordedEpisodes:
    mask = np.random.default_rng(0).random((found.num_steps, 2)) < 0.7
    mask[np.arange(found.num_steps), found.actions] = True
    return dataclasses.replace(found, action_mask=mask)


def test_transitions_are_what_a_loop_over_the_episodes_finds() -> None:
    found = masked(recorded("CartPole-v1", lambda o: int(o[2] > 0), episodes=6, steps=40))
    assert found.terminated.any() and found.truncated.any()
    episodes, discount = (4, 1, 2), 0.9
    wanted: list[tuple[Any, ...]] = []
    for e in episodes:
        begin, end = found.episode_starts[e], found.episode_ends[e]
        for i in range(begin, end):
            ended = i == end - 1
            following = found.last_observations["observation"][e] if ended else found.observations["observation"][i + 1]
            wanted.append((found.observations["observation"][i], found.actions[i], found.rewards[i], following))
            wanted[-1] += (0.0 if found.terminated[i] else discount, found.action_mask[i])  # type: ignore[index]
            wanted[-1] += (None if ended else found.action_mask[i + 1],)  # type: ignore[index]
    steps = RecordedSteps.of(found, episodes, lambda actions: actions)
    assert len(steps) == len(wanted)
    order = np.random.default_rng(1).permutation(len(steps))
    batch = RecordedCollator(steps, discount=discount).collate(order.tolist(), CPU, step=0)
    assert batch.action_mask is not None and batch.next_action_mask is not None
    for row, i in enumerate(order):
        shown, action, reward, following, worth, mask, next_mask = wanted[i]
        assert np.array_equal(batch.observations["observation"][row], shown)
        assert np.array_equal(batch.next_observations["observation"][row], following)
        assert (int(batch.actions[row]), float(batch.rewards[row])) == (action, reward)
        assert float(batch.discounts[row]) == np.float32(worth)
        assert np.array_equal(batch.action_mask[row], mask)
        assert next_mask is None or np.array_equal(batch.next_action_mask[row], next_mask)
        assert batch.next_action_mask[row].any()
    assert batch.weights.tolist() == [1.0] * len(order)


@pytest.mark.parametrize("squash", ["clip", "tanh"])
@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(4),
        gym.spaces.Discrete(4, start=-1),
        gym.spaces.MultiDiscrete([3, 2], start=[1, 0]),
        gym.spaces.MultiDiscrete(np.array([[3, 2], [2, 4]])),
        gym.spaces.Box(-1, 1, (3,), np.float32),
        gym.spaces.Box(np.array([[-2.0, 0.0]]), np.array([[1.0, 5.0]]), dtype=np.float64),
    ],
    ids=str,
)
def test_actions_of_an_env_are_themselves_again_after_their_stored_form(space: Any, squash: Any) -> None:
    space.seed(0)
    distribution = distribution_for(space, squash)
    actions = np.stack([space.sample() for _ in range(50)])
    stored = distribution.from_env(actions)
    assert stored.shape == (50, *distribution.action_shape)
    assert torch.from_numpy(stored).dtype == distribution.action_dtype
    again = distribution.to_env(stored)
    assert again.shape == actions.shape and again.dtype == actions.dtype
    near = 0.0
    if isinstance(space, gym.spaces.Box):  # stored as float32
        near = 1e-4 if squash == "tanh" else 1e-7
    assert np.abs(again - actions).max() <= near * (1 + np.abs(actions).max())
    if squash == "tanh" and isinstance(space, gym.spaces.Box):
        assert np.isfinite(distribution.from_env(np.stack([space.low, space.high]))).all()


def cloning(env: str, expert: Any, **settings: Any) -> tuple[BC, Context, ReplayMinibatch]:
    made = gym.make(env)
    policy = PolicyConfig(hidden_sizes=(8,), squash=settings.pop("squash", "clip"))
    network = build_actor_critic(made.observation_space, made.action_space, policy, with_critic=False, seed=0)
    found = recorded(env, expert, episodes=1, steps=12)
    steps = RecordedSteps.of(found, [0], network.distribution.from_env)
    batch = RecordedCollator(steps, discount=1.0).collate(range(len(steps)), CPU, step=0)
    context = Context({"actor_critic": network}, torch.Generator(), Collective())
    return BC(BCConfig(**settings)), context, whole(batch)


def test_the_loss_of_a_discrete_clone_is_the_mean_surprise_at_the_experts_actions() -> None:
    algorithm, context, minibatch = cloning("CartPole-v1", balances, entropy_coef=0.1)
    rows, network = minibatch.transitions, context.models["actor_critic"]
    surprise, entropy, agreed = 0.0, 0.0, 0
    for i in range(len(rows)):
        logits = network({"observation": rows.observations["observation"][i]}).params.tolist()  # type: ignore[operator]
        weights = [math.exp(x) for x in logits]
        chances = [w / sum(weights) for w in weights]
        surprise -= math.log(chances[int(rows.actions[i])])
        entropy -= sum(p * math.log(p) for p in chances)
        agreed += chances[int(rows.actions[i])] == max(chances)
    found = algorithm.loss(context, minibatch)
    size = len(rows)
    assert float(found.loss.detach()) == pytest.approx((surprise - 0.1 * entropy) / size, rel=1e-5)
    assert float(found.metrics["negative_log_likelihood"]) == pytest.approx(surprise / size, rel=1e-5)
    assert float(found.metrics["agreement"]) == pytest.approx(agreed / size)


@pytest.mark.parametrize("squash", ["clip", "tanh"])
def test_the_losses_of_a_continuous_clone_are_density_and_distance(squash: str) -> None:
    for name in ("nll", "mse"):
        algorithm, context, minibatch = cloning("Pendulum-v1", swings, loss=name, squash=squash)
        rows, network = minibatch.transitions, context.models["actor_critic"]
        density, distance = 0.0, 0.0
        for i in range(len(rows)):
            mean, log_std = network({"observation": rows.observations["observation"][i]}).params.tolist()  # type: ignore[operator]
            action = float(rows.actions[i])
            density += -0.5 * ((action - mean) / math.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
            if squash == "tanh":
                density -= math.log(1.0 - math.tanh(action) ** 2)
            near = (math.tanh(mean), math.tanh(action)) if squash == "tanh" else (mean, action)
            distance += (near[0] - near[1]) ** 2
        found = algorithm.loss(context, minibatch)
        wanted = -density if name == "nll" else distance
        assert float(found.loss.detach()) == pytest.approx(wanted / len(rows), rel=1e-4)
        found.loss.backward()
        gradient = cast(ActorCritic, network).log_std.grad  # type: ignore[union-attr]
        learnt = gradient is not None and bool(gradient.abs().sum() > 0)
        assert learnt == (name == "nll")


def test_the_losses_of_parts_add_up_to_that_of_the_whole() -> None:
    algorithm, context, minibatch = cloning("CartPole-v1", balances)
    parts = [part for rank in range(3) for part in minibatch.shards(rank, 3)]
    losses = [algorithm.loss(context, part) for part in parts]
    together = algorithm.loss(context, minibatch)
    assert float(sum(item.loss.detach() for item in losses)) == pytest.approx(float(together.loss.detach()), rel=1e-6)
    for name, value in together.metrics.items():
        assert float(sum(item.metrics[name] for item in losses)) == pytest.approx(float(value), rel=1e-5)
