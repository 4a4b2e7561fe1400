"""SAC's losses against the papers' equations, row by row; which loss moves what; where both forms end on a bandit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rollcall.learners.algorithms.control.off_policy.sac import SAC
from rollcall.learners.algorithms.control.off_policy.sac_config import SACConfig
from rollcall.learners.batches.replay_batch import Transitions
from rollcall.learners.models.policy_config import PolicyConfig
from tests.learners.algorithms.control.off_policy.replayed import (
    CONTINUOUS,
    DISCRETE,
    SQUASHED,
    Trained,
    critics_apart,
    transitions,
)

PLAIN = PolicyConfig(hidden_sizes=(8,), orthogonal_init=False)
FORMS = [
    pytest.param(SQUASHED, CONTINUOUS, False, id="continuous"),
    pytest.param(PLAIN, DISCRETE, False, id="discrete"),
    pytest.param(PLAIN, DISCRETE, True, id="masked"),
]


def trained(policy: PolicyConfig = SQUASHED, actions: gym.Space[Any] = CONTINUOUS, **settings: Any) -> Trained:
    return Trained(SAC(SACConfig(temperature=0.3, **settings)), policy, actions=actions)


def literal(now: Trained, rows: Transitions, noise: Tensor, target_entropy: float) -> dict[str, Tensor]:
    """J_Q (eq. 5), J_pi (eq. 7 and 9) and J of log alpha (eq. 18), with a sum over actions where they are choices (the
    discrete paper's eq. 10 to 12), as means over rows."""
    models: Any = now.models
    actor, temperature = models["actor_critic"], models["temperature"].log_value
    alpha = float(temperature.detach().exp())
    size, discrete = len(rows), not rows.actions.is_floating_point()
    terms: dict[str, Tensor] = {name: torch.zeros(()) for name in ("critic", "actor", "temperature")}

    def acts(seen: Tensor, eps: Tensor, allowed: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor, int]]:
        """(probability, log-probability, action, its number)"""
        params = actor.policy_params({"observation": seen[None]})[0]
        if discrete:
            choices = [a for a in range(len(params)) if allowed is None or bool(allowed[a])]
            total = sum(params[a].exp() for a in choices)
            return [(params[a].exp() / total, params[a] - total.log(), torch.empty(0), a) for a in choices]  # type: ignore[union-attr]
        mean, std = params[:2], params[2:].exp()
        u = mean + std * eps
        density = -0.5 * eps.square() - std.log() - 0.5 * math.log(2 * math.pi) - torch.log(1 - torch.tanh(u).square())
        return [(torch.ones(()), density.sum(), torch.tanh(u), 0)]

    def smallest(critic: Any, seen: Tensor, action: Tensor, number: int) -> Tensor:
        one, other = critics_apart(critic, torch.cat((seen, action))[None])
        return torch.minimum(one[0, number], other[0, number])

    for i in range(size):
        seen, after = rows.observations["observation"][i], rows.next_observations["observation"][i]
        masks = [None if mask is None else mask[i] for mask in (rows.action_mask, rows.next_action_mask)]
        value = torch.zeros(())
        for probability, logprob, action, number in acts(after, noise[i, 1], masks[1]):
            q = smallest(models["target_critic"], after, action, number)
            value = value + probability * (q - alpha * logprob)
        target = (rows.rewards[i] + rows.discounts[i] * value).detach()
        given = torch.empty(0) if discrete else torch.tanh(rows.actions[i])
        for q in critics_apart(models["critic"], torch.cat((seen, given))[None]):
            taken = q[0, int(rows.actions[i]) if discrete else 0]
            terms["critic"] = terms["critic"] + rows.weights[i] * (taken - target).square() / 2 / size
        entropy = torch.zeros(())
        for probability, logprob, action, number in acts(seen, noise[i, 0], masks[0]):
            q = smallest(models["critic"], seen, action, number)
            terms["actor"] = terms["actor"] + probability * (alpha * logprob - q) / size
            entropy = entropy - probability * logprob
        terms["temperature"] = terms["temperature"] + temperature[0] * (entropy - target_entropy).detach() / size
    return terms


@pytest.mark.parametrize(("policy", "actions", "masked"), FORMS)
def test_the_losses_are_the_papers_and_each_moves_its_own_model(
    policy: PolicyConfig, actions: gym.Space[Any], masked: bool
) -> None:
    now = trained(policy, actions)
    rows = transitions(actions=actions, masked=masked)
    (part,) = now.parts(rows)
    found = now.algorithm.loss(now.context, part)
    target_entropy = -2.0 if actions is CONTINUOUS else 0.98 * math.log(4)
    terms = literal(now, rows, part.noise, target_entropy)
    torch.testing.assert_close(found.loss.detach(), sum(terms.values()).detach())  # type: ignore[union-attr]
    torch.testing.assert_close(found.metrics["value_loss"], terms["critic"].detach())
    torch.testing.assert_close(found.metrics["policy_loss"], terms["actor"].detach())
    found.loss.backward()
    for term, model in (("critic", "critic"), ("actor", "actor_critic"), ("temperature", "temperature")):
        parameters = list(now.models[model].parameters())
        expected = torch.autograd.grad(terms[term], parameters, retain_graph=True)
        assert any(bool(gradient.any()) for gradient in expected)
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for parameter in now.models["target_critic"].parameters())


@pytest.mark.parametrize(("policy", "actions", "masked"), FORMS)
def test_shares_of_processes_add_up_to_the_whole(policy: PolicyConfig, actions: gym.Space[Any], masked: bool) -> None:
    now, rows = trained(policy, actions), transitions(actions=actions, masked=masked)
    sums = []
    for num_processes in (1, 3):
        now.trained.zero_gradients()
        metrics: list[dict[str, Tensor]] = []
        for part in now.parts(rows, num_processes):
            loss = now.algorithm.loss(now.context, part)
            loss.loss.backward()
            metrics.append({**loss.metrics, "loss": loss.loss.detach()})
        total = {name: torch.stack([m[name] for m in metrics]).sum() for name in metrics[0]}
        sums.append({**total, "gradient": now.trained.gradient.clone()})
    torch.testing.assert_close(sums[1], sums[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("policy", "actions", "masked"), FORMS)
def test_the_loss_compiles_as_one_graph(policy: PolicyConfig, actions: gym.Space[Any], masked: bool) -> None:
    now = trained(policy, actions)
    compiled: Callable[..., Any] = torch.compile(now.algorithm.loss, fullgraph=True, dynamic=False, backend="eager")
    for seed in range(2):
        (part,) = now.parts(transitions(actions=actions, masked=masked, seed=seed))
        torch.testing.assert_close(compiled(now.context, part), now.algorithm.loss(now.context, part))


def test_targets_follow_the_critics_after_every_step_and_the_actor_has_none() -> None:
    now = trained(target_rate=0.25)
    before = now.values("critic")
    now.learn(transitions(), transitions(seed=1))
    assert "target_actor_critic" not in now.models
    # Two steps, of which the first one's critic is not known any more: a bound on each side, and they moved.
    for name, target in now.values("target_critic").items():
        assert not torch.equal(target, before[name])
    now = trained(target_rate=0.25)
    now.learn(transitions())
    for name, target in now.values("target_critic").items():
        torch.testing.assert_close(target, 0.75 * before[name] + 0.25 * now.values("critic")[name])


def bandit(reward: Callable[[Tensor], Tensor], *, num: int, discrete: bool, seed: int) -> Transitions:
    """One state, one step: any action alike, and its reward."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.rand(num, 1, generator=generator) * 2.0 - 1.0
    actions = torch.randint(0, 3, (num,), generator=generator) if discrete else given.clamp(-0.999, 0.999).atanh()
    zeros = {"observation": torch.zeros(num, 1)}
    rewards = reward(actions if discrete else given.squeeze(-1))
    return Transitions(zeros, actions, rewards, torch.zeros(num), zeros, torch.ones(num))


def on_a_bandit(
    reward: Callable[[Tensor], Tensor], *, discrete: bool, steps: int, **settings: Any
) -> tuple[Trained, float]:
    """What is learnt of it, and the mean entropy over the last tenth of the steps."""
    arms: gym.Space[Any] = gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    policy = PLAIN if discrete else SQUASHED
    now = Trained(
        SAC(SACConfig(temperature_learning_rate=0.01, critic_learning_rate=0.01, **settings)),
        policy.model_copy(update={"hidden_sizes": (16,)}),
        observations=gym.spaces.Box(-1.0, 1.0, (1,), np.float32),
        actions=arms,
        learning_rate=5e-3,
    )
    entropies = [
        float(now.learn(bandit(reward, num=64, discrete=discrete, seed=seed))["entropy"]) for seed in range(steps)
    ]
    return now, sum(entropies[-steps // 10 :]) / (steps // 10)


ARMS = torch.tensor([0.0, 0.5, 1.0])


def test_on_a_bandit_the_discrete_form_ends_at_the_boltzmann_policy_of_its_temperature() -> None:
    now, _ = on_a_bandit(
        ARMS.__getitem__, discrete=True, steps=400, temperature=0.5, learn_temperature=False, discount=0.0
    )
    actor: Any = now.models["actor_critic"]
    probs = actor.policy_params({"observation": torch.zeros(1, 1)})[0].softmax(-1)
    torch.testing.assert_close(probs, (ARMS / 0.5).softmax(-1), atol=0.02, rtol=0)
    assert list(now.algorithm.learning_rates()) == ["actor_critic", "critic"]


@pytest.mark.parametrize(("discrete", "wanted"), [(True, 0.7), (False, -0.5)])
def test_the_temperature_moves_until_the_policy_has_its_target_entropy(discrete: bool, wanted: float) -> None:
    """Of a policy that begins with much more. The bound is five deviations of the mean of 64 rows over the steps that
    it is taken of, and what Adam's steps of 0.01 leave; the seeds are fixed."""
    reward = ARMS.__getitem__ if discrete else (lambda actions: -4.0 * (actions - 0.3).square())
    now, entropy = on_a_bandit(reward, discrete=discrete, steps=600, target_entropy=wanted, temperature=2.0)
    assert entropy == pytest.approx(wanted, abs=0.08)
    temperature: Any = now.models["temperature"]
    assert 0.0 < float(temperature()) < 1.0


@pytest.mark.parametrize(
    ("policy", "actions", "told"),
    [
        (PolicyConfig(state_dependent_std=True), CONTINUOUS, "set policy.squash=tanh"),
        (PLAIN, gym.spaces.MultiDiscrete([2, 2]), "no form for actions of a MultiCategorical"),
        (PolicyConfig(exploration_noise=0.1), CONTINUOUS, "no form for actions of a NoisyActions"),
        (PolicyConfig(recurrent="gru"), DISCRETE, "recurrent=gru: sac learns from single steps"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(policy: PolicyConfig, actions: gym.Space[Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        trained(policy, actions)
    assert "\n" not in str(caught.value)
