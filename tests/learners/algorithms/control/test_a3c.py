"""Gradients that actors compute, and what a learner makes of them: as one big batch would, late as they may come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rollcall.cluster.books.consumption import ConsumptionLog, read_log
from rollcall.cluster.errors import NonFinite
from rollcall.cluster.messages.experience import GymGradient, GymTrajectory
from rollcall.cluster.messages.reports import StepOrder, StepReport
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.messages.wire import from_bytes, to_bytes
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.kinds.recipes import load_config
from rollcall.learners.algorithms.control.a2c import A2C
from rollcall.learners.algorithms.control.a2c_config import A2CConfig
from rollcall.learners.algorithms.control.a3c import A3C
from rollcall.learners.algorithms.control.a3c_config import A3CConfig
from rollcall.learners.collators.gradients import GradientCollator
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.fragment_gradients import FragmentGradients
from rollcall.learners.loop.learner import Learner
from rollcall.learners.loop.optimizer_config import RMSpropConfig, SGDConfig
from rollcall.learners.loop.optimizers import build_optimizer
from rollcall.learners.models.flat import load_module_weights
from rollcall.learners.models.networks import ActorCritic, build_actor_critic
from rollcall.learners.models.policy_config import PolicyConfig
from tests.learners.experience import SPACES, cartpole, make_learner

PLAIN = LearnerConfig(learning_rate=1.0, optimizer=SGDConfig(), max_grad_norm=None)


def make_network(policy: PolicyConfig, seed: int = 3) -> ActorCritic:
    return build_actor_critic(*SPACES, policy, with_critic=True, seed=seed)


def make_a3c(config: LearnerConfig = PLAIN, *, policy: PolicyConfig | None = None, log: Path | None = None) -> Learner:
    return Learner(
        models={"actor_critic": make_network(policy or PolicyConfig())},
        algorithm=A3C(A3CConfig()),
        config=config,
        policy_id="policy",
        run_seed=0,
        collator=GradientCollator(),
        consumption_log=log,
    )


def gradient_of(trajectory: GymTrajectory, weights: Weights, policy: PolicyConfig | None = None) -> GymGradient:
    """As an actor with these weights computes it, whose own networks began elsewhere."""
    at_actor = FragmentGradients({"actor_critic": make_network(policy or PolicyConfig(), seed=9)}, A2C(A2CConfig()))
    at_actor.load(weights)
    return at_actor.of(trajectory)


def update(learner: Learner, items: Sequence[Any], step: int = 0) -> StepReport:
    return learner.update(items, StepOrder(step, 1, 0.0))[0]


def flat(learner: Any) -> Tensor:
    parameters: Tensor = learner._stepper.parameters
    return parameters


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_gradients_of_several_units_together_are_that_of_one_big_batch(recurrent: Any) -> None:
    """Units of unequal length: the mean is over steps, not over units."""
    policy = PolicyConfig(recurrent=recurrent, recurrent_size=8, hidden_sizes=(16,))
    whole, parted = make_learner(A2C(A2CConfig()), policy=policy, config=PLAIN), make_a3c(policy=policy)
    weights = parted.weights(epoch=1, version=0)
    assert weights.checksum == whole.weights(epoch=1, version=0).checksum
    units = [cartpole(weights, ticket=n, num_steps=24, num_envs=n + 1, policy=policy) for n in range(3)]
    update(whole, units)
    report = update(parted, [gradient_of(unit, weights, policy) for unit in units])
    before = make_a3c(policy=policy)
    moved = flat(whole) - flat(before)
    assert float(moved.abs().max()) > 0.1
    torch.testing.assert_close(flat(parted) - flat(before), moved, atol=1e-6, rtol=1e-6)
    assert report.metrics["grad_norm"] == pytest.approx(float(moved.norm()), rel=1e-5)


def test_a_gradient_is_that_of_the_papers_loss_step_by_step() -> None:
    """Returns by a loop backwards in time from the fragment's end; the loss summed term by term."""
    learner = make_a3c()
    weights = learner.weights(epoch=1, version=0)
    unit = cartpole(weights, ticket=4, num_envs=3)
    assert unit.steps.terminated.any()
    network = make_network(PolicyConfig(), seed=5)
    load_module_weights(network, weights)
    loss, num_valid, steps = torch.zeros(()), int(unit.steps.mask.sum()), unit.steps
    last = network.state_values({"observation": torch.from_numpy(unit.unroll.last_observations["observation"])})
    assert last is not None
    for env in range(3):
        following = float(last[env].detach())
        for t in reversed(range(len(steps.mask))):
            shown = {"observation": torch.from_numpy(steps.observations["observation"][t, env])[None]}
            if not steps.mask[t, env]:  # the envs' reset: what comes before it has ended
                continue
            params, values, _ = network(shown)
            assert values is not None and not steps.truncated[t, env]
            following = float(steps.rewards[t, env]) + 0.99 * following * (not steps.terminated[t, env])
            logprob = network.distribution.log_prob(params, torch.as_tensor(steps.actions[t, env])[None])
            loss = loss - logprob[0] * (following - values[0].detach())
            loss = loss + 0.5 * 0.5 * (following - values[0]).square()
            loss = loss - 0.01 * network.distribution.entropy(params)[0]
    (loss / num_valid).backward()
    found = gradient_of(unit, weights)
    assert found.metrics["loss"] == pytest.approx(float(loss.detach()) / num_valid, rel=1e-4)
    parted: Any = make_a3c()
    places = parted._stepper.views(torch.from_numpy(found.gradient))
    for (name, parameter), (_, place) in zip(network.named_parameters(), places, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(place, parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_late_gradients_move_newer_parameters_and_all_share_one_average_of_squares() -> None:
    """RMSprop with shared statistics, literally: s <- 0.99 s + 0.01 g^2; parameters less rate * g / (sqrt(s) + eps)."""
    rate, rule = 1e-2, RMSpropConfig(eps=1e-4)
    learner = make_a3c(LearnerConfig(learning_rate=rate, optimizer=rule, max_grad_norm=5.0))
    weights = learner.weights(epoch=1, version=0)
    found = [gradient_of(cartpole(weights, ticket=n), weights) for n in range(3)]  # all of version 0
    expected, squares = flat(learner), torch.zeros(len(found[0].gradient))
    for step, item in enumerate(found):
        update(learner, [item], step)
        gradient = torch.from_numpy(item.gradient)
        gradient = gradient * min(1.0, 5.0 / (float(gradient.norm()) + 1e-6))
        squares = 0.99 * squares + 0.01 * gradient.square()
        expected = expected - rate * gradient / (squares.sqrt() + 1e-4)
        torch.testing.assert_close(flat(learner), expected, atol=1e-6, rtol=1e-5)


def moved_by_a_surprise(config: LearnerConfig, *, before: float, size: int = 9155) -> float:
    """How far one parameter goes, in rates, by a gradient at the clip that is spread evenly over all of them: after
    2,000 steps with gradients of `before` of that."""
    assert isinstance(config.optimizer, RMSpropConfig) and config.max_grad_norm is not None
    parameter = torch.nn.Parameter(torch.zeros(size))
    optimizer = build_optimizer([parameter], config.optimizer, learning_rate=config.learning_rate)
    at_clip = torch.full((size,), config.max_grad_norm / size**0.5)
    for share in (before,) * 2000 + (1.0,):
        was, parameter.grad = float(parameter.detach()[0]), share * at_clip
        optimizer.step()
    return abs(float(parameter.detach()[0]) - was) / config.learning_rate


def test_after_a_calm_the_recipes_epsilon_keeps_a_surprise_to_the_size_of_any_other_step() -> None:
    """g / (sqrt(0.01) g + eps), in place of g / (g + eps): without an epsilon to speak of ten times as far, which
    unlearns in a step or two what the calm was owed to."""
    config = load_config("cartpole-a3c")
    assert isinstance(config, RunConfig)
    learner = config.learner
    assert moved_by_a_surprise(learner, before=1.0) == pytest.approx(0.343, abs=0.01)
    assert moved_by_a_surprise(learner, before=0.0) == pytest.approx(0.497, abs=0.01)
    small = learner.model_copy(update={"optimizer": RMSpropConfig()})
    assert moved_by_a_surprise(small, before=1.0) == pytest.approx(1.0, abs=0.01)
    assert moved_by_a_surprise(small, before=0.0) == pytest.approx(9.8, abs=0.1)
    assert moved_by_a_surprise(small, before=1e-3) > 9.0


def test_a_gradient_that_is_not_finite_is_refused_where_it_is_computed_and_where_it_is_applied() -> None:
    learner = make_a3c()
    weights = learner.weights(epoch=1, version=0)
    unit = cartpole(weights)
    huge = replace(unit, unroll=unit.unroll.with_rewards(unit.steps.rewards * np.float32(1e30)))
    with pytest.raises(NonFinite, match="gradient of its loss is not finite"):
        gradient_of(huge, weights)
    before, sound = flat(learner), gradient_of(unit, weights)
    damaged = sound.gradient.copy()
    damaged[7] = np.nan
    report = update(learner, [sound, replace(sound, gradient=damaged)])
    assert report.skipped
    assert torch.equal(flat(learner), before)
    assert not update(learner, [sound], 1).skipped


def test_the_consumption_log_has_the_fingerprint_of_each_gradient(tmp_path: Path) -> None:
    log = tmp_path / "consumption.jsonl"
    ConsumptionLog(log)
    learner = make_a3c(log=log)
    weights = learner.weights(epoch=1, version=0)
    found = [gradient_of(cartpole(weights, ticket=n), weights) for n in range(2)]
    update(learner, found)
    assert [line.digest for _, line in read_log(log).lines] == [item.digest() for item in found]
    assert len({item.digest() for item in found}) == 2
    again = from_bytes(to_bytes(found[0]), GymGradient)
    assert again.digest() == found[0].digest() and again.metrics == found[0].metrics
