"""TD3's losses against the paper's algorithm, row by row; the actor's turn; and the noise of its actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rollcall.learners.algorithms.control.off_policy.td3 import TD3
from rollcall.learners.algorithms.control.off_policy.td3_config import TD3Config
from rollcall.learners.maths.noisy_actions import noisy_actions
from rollcall.learners.models.policy_config import PolicyConfig
from tests.learners.algorithms.control.off_policy.replayed import (
    CONTINUOUS,
    DETERMINISTIC,
    DISCRETE,
    Trained,
    critics_apart,
    transitions,
)


def trained(**settings: Any) -> Trained:
    return Trained(TD3(TD3Config(**settings)), DETERMINISTIC)


@pytest.mark.parametrize("turn", [False, True])
def test_the_losses_are_the_papers_and_each_moves_its_own_model(turn: bool) -> None:
    """Algorithm 1: y = r + discount * min Q'(s', clip(mu'(s') + clip(noise))), (Q_i - y)^2, and -Q_1(s, mu(s))."""
    now = trained(target_noise=0.8, target_noise_clip=0.5, policy_delay=1 if turn else 2)
    models: Any = now.models
    with torch.no_grad():  # so that an action meets its bound
        models["target_actor_critic"].policy_head.bias[0] = 2.0
    rows = transitions()
    (part,) = now.parts(rows)
    assert part.of_actor is turn
    found = now.algorithm.loss(now.context, part)
    critic_loss = actor_loss = torch.zeros(())
    bounded = 0
    for i in range(len(rows)):
        seen, after = rows.observations["observation"][i], rows.next_observations["observation"][i]
        noise = torch.tensor([min(max(0.8 * float(x), -0.5), 0.5) for x in part.noise[i, 0]])
        mean = torch.tanh(models["target_actor_critic"].policy_params({"observation": after[None]})[0])
        bounded += int(((mean + noise).abs() > 1.0).sum())
        q_after = critics_apart(models["target_critic"], torch.cat((after, (mean + noise).clamp(-1, 1)))[None])
        target = (rows.rewards[i] + rows.discounts[i] * min(float(q) for q in q_after)).detach()
        for q in critics_apart(models["critic"], torch.cat((seen, rows.actions[i]))[None]):
            critic_loss = critic_loss + rows.weights[i] * (q[0, 0] - target).square() / 2 / len(rows)
        action = torch.tanh(models["actor_critic"].policy_params({"observation": seen[None]})[0])
        actor_loss = actor_loss - critics_apart(models["critic"], torch.cat((seen, action))[None])[0][0, 0] / len(rows)
    assert 0 < bounded < 2 * len(rows)
    torch.testing.assert_close(found.metrics["value_loss"], critic_loss.detach())
    torch.testing.assert_close(found.loss.detach(), (critic_loss + turn * actor_loss).detach())
    found.loss.backward()
    for term, model, moves in ((critic_loss, "critic", True), (actor_loss, "actor_critic", turn)):
        parameters = list(now.models[model].parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(term, parameters), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient * moves, atol=1e-6, rtol=1e-4)


def test_the_actor_and_all_targets_move_at_every_other_step_over_the_borders_of_learner_steps() -> None:
    now = trained(target_rate=0.5)
    names = ("actor_critic", "critic", "target_actor_critic", "target_critic")
    moved = []
    for step in range(5):
        before = {name: now.values(name) for name in names}
        moments = {name: tensor.detach().clone() for name, tensor in now.trained.tensors().items()}
        now.learn(transitions(seed=step))
        moved.append([any(not torch.equal(v, before[n][k]) for k, v in now.values(n).items()) for n in names])
        if step % 2 == 0:  # nor do the averages of an actor's gradients that are not there
            for name, tensor in now.trained.tensors().items():
                assert torch.equal(tensor, moments[name]) == name.endswith(".actor_critic"), name
    assert moved == [[False, True, False, False], [True] * 4] * 2 + [[False, True, False, False]]
    in_one = trained(target_rate=0.5)
    in_one.learn(*(transitions(seed=step) for step in range(5)))
    for name in names:
        torch.testing.assert_close(in_one.values(name), now.values(name), atol=0, rtol=0)


def test_metrics_are_means_over_the_steps_that_had_them() -> None:
    now, same = trained(), trained()
    together = now.learn(transitions(), transitions(seed=1))
    apart = [same.learn(transitions()), same.learn(transitions(seed=1))]
    assert "policy_loss" not in apart[0]
    torch.testing.assert_close(together["policy_loss"], apart[1]["policy_loss"])
    torch.testing.assert_close(together["td_error"], (apart[0]["td_error"] + apart[1]["td_error"]) / 2)
    assert now.learn() == {}  # before there is enough to learn from


def test_the_loss_compiles_as_one_graph_for_either_turn() -> None:
    now = trained()
    compiled: Callable[..., Any] = torch.compile(now.algorithm.loss, fullgraph=True, dynamic=False, backend="eager")
    for seed in range(2):
        (part,) = now.parts(transitions(seed=seed))
        torch.testing.assert_close(compiled(now.context, part), now.algorithm.loss(now.context, part))
        now.learn(transitions())


def test_it_climbs_to_the_best_action_of_a_bandit() -> None:
    """reward = -(a - 0.3)^2 of the first number and -(a + 0.5)^2 of the second, one state, one step."""
    policy = DETERMINISTIC.model_copy(update={"hidden_sizes": (32,), "activation": "silu"})
    now = Trained(TD3(TD3Config(critic_learning_rate=2e-2)), policy, learning_rate=1e-3)
    best = torch.tensor([0.3, -0.5])
    for seed in range(300):
        rows = transitions(64, seed=seed)
        zeros = {"observation": torch.zeros(64, 3)}
        actions = torch.rand(64, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        rewards = -(actions - best).square().sum(-1)
        now.learn(type(rows)(zeros, actions, rewards, torch.zeros(64), zeros, torch.ones(64)))
    actor: Any = now.models["actor_critic"]
    found = torch.tanh(actor.policy_params({"observation": torch.zeros(1, 3)})[0]).detach()
    torch.testing.assert_close(found, best, atol=0.08, rtol=0)


def test_noise_explores_around_the_greedy_action_and_stays_within_bounds() -> None:
    actions = noisy_actions(CONTINUOUS, 0.1)
    params = torch.tensor([0.2, 3.0]).expand(20_000, 2)
    sampled = actions.sample(params, actions.noise((20_000,), torch.Generator().manual_seed(0)))
    assert float(sampled.abs().max()) == 1.0  # the second is near its bound
    inner = sampled[:, 0] - torch.tanh(params[:, 0])
    assert float(inner.mean()) == pytest.approx(0.0, abs=5 * 0.1 / 20_000**0.5)
    assert float(inner.std()) == pytest.approx(0.1, rel=5 / (2 * 20_000) ** 0.5)
    logprobs = actions.log_prob(params[:5], sampled[:5])
    torch.testing.assert_close(
        logprobs, torch.distributions.Normal(torch.tanh(params[:5]), 0.1).log_prob(sampled[:5]).sum(-1)
    )
    ends = actions.to_env(np.array([[-1.0, -1.0], [1.0, 0.0]], np.float32))
    np.testing.assert_allclose(ends, [[-2.0, 0.0], [2.0, 0.5]])
    greedy = actions.to_env(actions.mode(params[:1]).numpy())
    assert bool(((CONTINUOUS.low <= greedy) & (greedy <= CONTINUOUS.high)).all())


@pytest.mark.parametrize(
    ("policy", "actions", "told"),
    [
        (PolicyConfig(squash="tanh"), CONTINUOUS, "set policy.exploration_noise=0.1"),
        (PolicyConfig(), DISCRETE, "td3 needs continuous actions"),
        (DETERMINISTIC, DISCRETE, "exploration_noise=0.1: .* acts in a Box of floats"),
        (DETERMINISTIC, spaces.Box(-np.inf, np.inf, (2,), np.float32), "needs finite bounds"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(policy: PolicyConfig, actions: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        Trained(TD3(TD3Config()), policy, actions=actions)
    assert "\n" not in str(caught.value)
