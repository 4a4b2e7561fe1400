"""TRPO's step against one made with the whole Fisher matrix, for every kind of action; its two promises, measured apart
from it; and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithm import Context
from rollcall.learners.algorithms.control.ppo import PPO
from rollcall.learners.algorithms.control.ppo_config import KLPenalty, PPOConfig
from rollcall.learners.algorithms.control.samples import StepRows
from rollcall.learners.algorithms.control.trpo import TRPO, TRPOTargets
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.collective import Collective
from rollcall.learners.loop.optimizer_config import AdamConfig
from rollcall.learners.loop.parameters import ReplicatedParameters
from rollcall.learners.maths.trust_region import HasKL, conjugate_gradient
from rollcall.learners.models.networks import CRITIC_CHILDREN, ActorCritic, build_actor_critic
from rollcall.learners.models.policy_config import PolicyConfig
from rollcall.learners.update import Stepper
from tests.learners.experience import cartpole, context_of, make_learner

MakePolicy = Callable[..., ActorCritic]
MakeBatch = Callable[..., GymBatch]

ACTIONS = [
    pytest.param({}, {}, id="discrete"),
    pytest.param({}, {"forbid": True}, id="masked"),
    pytest.param({"continuous": True}, {}, id="continuous"),
    pytest.param({"continuous": True, "squash": "tanh"}, {}, id="squashed"),
]


def trpo(**settings: Any) -> TRPO:
    return TRPO(TRPO.Config(**settings))


def stepper_of(algorithm: TRPO, policy: ActorCritic) -> tuple[Context, Stepper]:
    context = context_of({"actor_critic": policy})
    trained = ReplicatedParameters(context.models, collective=Collective(), optimizer=AdamConfig(), learning_rate=0.01)
    return context, Stepper(algorithm, context, trained)


def acting(policy: ActorCritic) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in policy.named_parameters() if not name.startswith(CRITIC_CHILDREN)}


def side_by_side(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double()


def gradient(value: Tensor, policy: ActorCritic) -> Tensor:
    parameters = list(acting(policy).values())
    return side_by_side(torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True))


def test_conjugate_gradients_solve_what_a_matrix_solves() -> None:
    root = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix, target = root @ root.T + 0.1 * torch.eye(7), torch.arange(7.0, dtype=torch.float64)
    solved = conjugate_gradient(lambda v: matrix @ v, target, iterations=14, tolerance=1e-26)
    torch.testing.assert_close(solved, torch.linalg.solve(matrix, target))
    zero = conjugate_gradient(lambda v: matrix @ v, torch.zeros(7), iterations=3)
    assert torch.equal(zero, torch.zeros(7))


@pytest.mark.parametrize(("kind", "experience"), ACTIONS)
def test_the_step_is_that_of_the_whole_fisher_matrix(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: dict[str, Any], experience: dict[str, Any]
) -> None:
    """F = E_s E_a [grad log pi(a|s) grad log pi(a|s)^T], solved exactly: over each step's every action where they are
    discrete; of a Gaussian by its closed form, which tanh does not change."""
    policy = make_policy(**kind)
    batch = make_batch(policy, lag=0.2, **experience)
    max_kl, damping = 0.003, 0.05
    algorithm = trpo(max_kl=max_kl, cg_damping=damping, cg_iterations=150, critic_epochs=1, critic_minibatches=1)
    context, stepper = stepper_of(algorithm, policy)
    prepared = algorithm.prepare(context, batch)
    old = side_by_side(acting(policy).values())
    fisher, climb, count = torch.zeros(len(old), len(old)), torch.zeros(len(old)), 0
    fisher, climb = fisher.double(), climb.double()
    advantages = prepared.targets.advantages.view(batch.shape)
    for t, b in batch.steps.mask.nonzero().tolist():
        params = policy.policy_params({"observation": batch.steps.observations["observation"][t, b]})
        allowed = None if batch.steps.action_mask is None else batch.steps.action_mask[t, b]
        fisher += fisher_of(policy, params, allowed)
        logprob = policy.distribution.log_prob(params, batch.steps.actions[t, b], allowed)
        ratio = (logprob - batch.steps.behaviour_logprobs[t, b]).exp()
        climb += gradient(ratio * advantages[t, b], policy)
        count += 1
    damped = fisher / count + damping * torch.eye(len(old), dtype=torch.float64)
    direction = torch.linalg.solve(damped, climb / count)
    full = (2.0 * max_kl / (direction @ damped @ direction)).sqrt() * direction
    metrics = algorithm.update(context, prepared, stepper)
    step = side_by_side(acting(policy).values()) - old
    expected = 0.8 ** float(metrics["line_search_steps"]) * full
    assert float(step.norm()) > 1e-3
    torch.testing.assert_close(step, expected, rtol=0.0, atol=2e-3 * float(expected.norm()))
    assert float(metrics["grad_norm"]) == pytest.approx(float((climb / count).norm()), rel=1e-4)


def fisher_of(policy: ActorCritic, params: Tensor, allowed: Tensor | None) -> Tensor:
    if policy.log_std is None:
        logprobs = [policy.distribution.log_prob(params, torch.tensor(a), allowed) for a in range(4)]
        scores = [(logprob.exp().item(), gradient(logprob, policy)) for logprob in logprobs]
        return torch.stack([p * torch.outer(score, score) for p, score in scores if p > 0]).sum(0)
    mean, log_std = params.split(2)
    information = [(gradient(m, policy), (-2.0 * s).exp().item()) for m, s in zip(mean, log_std, strict=True)]
    information += [(gradient(s, policy), 2.0) for s in log_std]
    return torch.stack([weight * torch.outer(row, row) for row, weight in information]).sum(0)


@pytest.mark.parametrize(("kind", "experience"), ACTIONS)
def test_the_surrogate_rises_and_the_kl_stays_within_the_bound(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: dict[str, Any], experience: dict[str, Any]
) -> None:
    """Of a step so long that the quadratic model no longer holds: the line search must have shortened some."""
    shortened = 0.0
    for seed in range(4):
        policy = make_policy(**kind, seed=seed)
        batch = make_batch(policy, seed=seed, **experience)
        algorithm = trpo(max_kl=1.0, cg_damping=1e-3, critic_epochs=1)
        context, stepper = stepper_of(algorithm, policy)
        prepared = algorithm.prepare(context, batch)
        before = policy.policy_params(batch.steps.observations).detach()
        metrics = algorithm.update(context, prepared, stepper)
        with torch.no_grad():
            after = policy.policy_params(batch.steps.observations)
            logprobs = policy.distribution.log_prob(after, batch.steps.actions, batch.steps.action_mask)
        ratio = (logprobs - batch.steps.behaviour_logprobs).exp()
        advantages = prepared.targets.advantages.view(batch.shape)
        gained = ((ratio - 1.0) * advantages)[batch.steps.mask].mean()
        distribution = cast(HasKL, policy.distribution)
        kl = distribution.kl(before, after, batch.steps.action_mask)[batch.steps.mask].mean()
        assert float(gained) > 1e-3
        assert 0.0 < float(kl) <= 1.0
        assert float(metrics["kl_old"]) == pytest.approx(float(kl), rel=1e-4)
        shortened += float(metrics["line_search_steps"])
    assert shortened > 0


def test_where_no_step_is_better_the_policy_stays_and_the_critic_learns(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy()
    algorithm = trpo()
    context, stepper = stepper_of(algorithm, policy)
    prepared = algorithm.prepare(context, make_batch(policy))
    targets = replace(prepared.targets, advantages=torch.zeros_like(prepared.targets.advantages))
    prepared = StepRows[TRPOTargets](prepared.steps, targets)
    assert policy.value_head is not None
    before, value_before = side_by_side(acting(policy).values()), policy.value_head.weight.detach().clone()
    metrics = algorithm.update(context, prepared, stepper)
    assert torch.equal(side_by_side(acting(policy).values()), before)
    assert not torch.equal(policy.value_head.weight, value_before)
    assert float(metrics["kl_old"]) == pytest.approx(0.0, abs=1e-6)
    assert float(stepper.broken) == float(stepper.broken)  # nothing was divided by that zero


def test_a_reward_that_is_not_finite_changes_nothing() -> None:
    learner: Any = make_learner(trpo())
    before = {name: tensor.clone() for name, tensor in learner._state_tensors().items()}
    item = cartpole(learner.weights(epoch=1, version=0))
    item.steps.rewards[3, 1] = float("nan")
    report, _ = learner.update([item], StepOrder(0, 1, 0.0))
    assert report.skipped
    for name, tensor in learner._state_tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_a_policy_that_shares_with_its_critic_is_refused(make_policy: MakePolicy) -> None:
    with pytest.raises(ValueError, match=r"^recurrent=gru: trpo fits the critic apart"):
        trpo().check_models({"actor_critic": make_policy(recurrent="gru")})
    with pytest.raises(ValueError, match=r"^shared_torso=True: .* set it to false"):
        trpo().check_models({"actor_critic": make_policy(shared_torso=True)})
    trpo().check_models({"actor_critic": make_policy()})


def test_a_policy_whose_actions_have_no_kl_is_refused() -> None:
    spaces = gym.spaces.Box(-1, 1, (3,), np.float32), gym.spaces.Box(-1, 1, (2,), np.float32)
    network = build_actor_critic(*spaces, PolicyConfig(exploration_noise=0.1), with_critic=True, seed=0)
    with pytest.raises(ValueError, match=r"^exploration_noise=0.1: trpo needs a policy that draws its actions"):
        trpo().check_models({"actor_critic": network})
    with pytest.raises(ValueError, match=r"^exploration_noise=0.1: a KL penalty needs"):
        PPO(PPOConfig(kl_penalty=KLPenalty())).check_models({"actor_critic": network})
    PPO(PPOConfig()).check_models({"actor_critic": network})


@pytest.mark.parametrize("kind", [{}, {"continuous": True}], ids=["discrete", "continuous"])
def test_it_learns_which_action_is_right(make_policy: MakePolicy, make_batch: MakeBatch, kind: dict[str, Any]) -> None:
    """Episodes of one step. Discrete: the right action is the sign of the first number seen, chance is 1/4. Continuous:
    the nearer to 1 the better. Seeded; from far below to far above in 20 updates."""
    policy = make_policy(seed=3, **kind)
    algorithm = trpo(max_kl=0.05, cg_damping=0.01)
    context, stepper = stepper_of(algorithm, policy)
    rates = []
    for seed in range(20):
        batch = make_batch(policy, num_steps=4, num_envs=32, seed=seed, dead_rate=0.0, end_rate=2.0)
        if kind:
            rewards = -(batch.steps.actions - 1.0).abs().sum(-1)
        else:
            right = (batch.steps.observations["observation"][..., 0] > 0).long()
            rewards = (batch.steps.actions == right).float()
        rates.append(float(rewards.mean()))
        steps = replace(
            batch.steps, rewards=rewards, terminated=batch.steps.mask, truncated=torch.zeros_like(batch.steps.mask)
        )
        stepper.begin()
        algorithm.update(context, algorithm.prepare(context, replace(batch, steps=steps)), stepper)
    if kind:
        assert rates[0] < -2.0 and sum(rates[-3:]) / 3 > -1.0
    else:
        assert rates[0] < 0.4 and sum(rates[-3:]) / 3 > 0.85
