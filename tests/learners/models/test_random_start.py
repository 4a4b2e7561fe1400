"""What actors do before there is anything to follow, and standard deviations that come from the network."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rollcall.learners.algorithms.control.off_policy.td3 import TD3
from rollcall.learners.algorithms.control.off_policy.td3_config import TD3Config
from rollcall.learners.models.flat import module_weights
from rollcall.learners.models.networks import build_actor_critic
from rollcall.learners.models.policy import TorchPolicy
from rollcall.learners.models.policy_config import PolicyConfig
from tests.learners.algorithms.control.off_policy.replayed import (
    CONTINUOUS,
    DETERMINISTIC,
    DISCRETE,
    SQUASHED,
    VECTOR,
    Trained,
    transitions,
)

START = {"random_start": True}
STEPS = 400


def acting(policy: PolicyConfig, actions: gym.Space[Any], *, on: bool = True) -> TorchPolicy:
    network = build_actor_critic(VECTOR, actions, policy, with_critic=False, seed=0)
    if network.random_start is not None:
        network.random_start.on.fill_(on)
    weights = module_weights({"actor_critic": network}, "policy", epoch=1, version=0)
    return TorchPolicy(VECTOR, actions, policy, weights=weights)


def acted(policy: TorchPolicy, *, greedy: bool = False, mask: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(stored, as the env takes them, log-probabilities), of STEPS steps of 16 envs."""
    rollout = policy.rollout(num_steps=STEPS, num_envs=16, seed=5, recurrent_state=None, greedy=greedy)
    shown = {"observation": np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)}
    starts = np.zeros(16, bool)
    found = [[a.copy() for a in rollout.act(shown, episode_starts=starts, action_mask=mask)] for _ in range(STEPS)]
    return np.stack([a for a, _ in found]), np.stack([a for _, a in found]), rollout.behaviour_logprobs()


@pytest.mark.parametrize("policy", [SQUASHED, DETERMINISTIC], ids=["sac", "td3"])
def test_continuous_actions_are_uniform_between_their_bounds_until_the_switch_is_turned(policy: PolicyConfig) -> None:
    """Deciles of 6400 actions: each share is within five deviations of a tenth."""
    policy = policy.model_copy(update=START)
    _, taken, logprobs = acted(acting(policy, CONTINUOUS))
    for number in range(2):
        low, high = CONTINUOUS.low[number], CONTINUOUS.high[number]
        counts, _ = np.histogram(taken[..., number], bins=10, range=(low, high))
        np.testing.assert_allclose(counts / counts.sum(), 0.1, atol=5 * (0.09 / 6400) ** 0.5)
    np.testing.assert_allclose(logprobs, -2 * np.log(2.0), rtol=1e-6)
    off, plain = (
        acting(policy, CONTINUOUS, on=False),
        acting(policy.model_copy(update={"random_start": False}), CONTINUOUS),
    )
    for one, other in zip(acted(off), acted(plain), strict=True):
        np.testing.assert_array_equal(one, other)
    on = acting(policy, CONTINUOUS)
    np.testing.assert_array_equal(acted(on, greedy=True)[0], acted(plain, greedy=True)[0])


def test_choices_are_uniform_among_those_that_are_allowed() -> None:
    policy = acting(PolicyConfig(**START), DISCRETE)  # type: ignore[arg-type]
    mask = np.tile([True, False, True, True], (16, 1))
    stored, _, logprobs = acted(policy, mask=mask)
    shares = np.bincount(stored.reshape(-1), minlength=4) / stored.size
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 3, 1 / 3], atol=5 * (2 / 9 / 6400) ** 0.5)
    np.testing.assert_allclose(logprobs, -np.log(3.0), rtol=1e-6)


def test_the_learner_turns_the_switch_with_its_first_gradient_step() -> None:
    now = Trained(TD3(TD3Config()), DETERMINISTIC.model_copy(update=START))
    network: Any = now.models["actor_critic"]
    now.learn()
    assert bool(network.random_start.on)
    now.learn(transitions())
    assert not bool(network.random_start.on)
    with pytest.raises(ValueError, match=r"set policy\.squash=tanh"):
        acting(PolicyConfig(**START), CONTINUOUS)  # type: ignore[arg-type]


def test_weights_that_know_no_switch_are_of_a_policy_that_acts() -> None:
    network = build_actor_critic(VECTOR, CONTINUOUS, SQUASHED, with_critic=False, seed=0)
    weights = module_weights({"actor_critic": network}, "policy", epoch=1, version=3)
    policy = TorchPolicy(VECTOR, CONTINUOUS, SQUASHED.model_copy(update=START), weights=weights)
    assert policy.module.random_start is not None and not bool(policy.module.random_start.on)


def test_deviations_of_the_network_are_bounded_alike_where_it_acts_and_where_it_learns() -> None:
    shown = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32))
    for bias, bound in ((100.0, 2.0), (-100.0, -20.0)):
        network = build_actor_critic(VECTOR, CONTINUOUS, SQUASHED, with_critic=False, seed=0)
        with torch.no_grad():
            network.policy_head.bias[2:] += bias
        weights = module_weights({"actor_critic": network}, "policy", epoch=1, version=0)
        stored, _, logprobs = acted(TorchPolicy(VECTOR, CONTINUOUS, SQUASHED, weights=weights))
        params = network.policy_params({"observation": shown}).detach()
        assert bool((params[:, 2:] == bound).all())
        deviations = (torch.from_numpy(stored) - params[:, :2]).std()
        assert float(deviations) == pytest.approx(np.exp(bound), rel=0.05, abs=1e-6)
        if bound > 0.0:  # where they are narrow, a mean's last bit is many deviations
            expected = network.distribution.log_prob(params.expand(STEPS, 16, 4), torch.from_numpy(stored))
            torch.testing.assert_close(torch.from_numpy(logprobs), expected, rtol=1e-4, atol=1e-4)
