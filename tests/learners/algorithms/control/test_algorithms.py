"""What all algorithms promise (parts add up to the whole, a loss compiles), and how each relates to the others: on the
same on-policy data A2C, PPO, IMPALA and REINFORCE with a critic take the same step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rollcall.learners.algorithm import Algorithm, StopsEarly, with_own_models
from rollcall.learners.algorithms.control.a2c import A2C
from rollcall.learners.algorithms.control.impala import IMPALA
from rollcall.learners.algorithms.control.ppo import PPO
from rollcall.learners.algorithms.control.reinforce import REINFORCE
from rollcall.learners.algorithms.control.rnd import RND
from rollcall.learners.algorithms.control.samples import ActorCriticMinibatch
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.models.networks import ActorCritic
from tests.learners.experience import context_of

MakePolicy = Callable[..., ActorCritic]
MakeBatch = Callable[..., GymBatch]

ALGORITHMS = [
    pytest.param(PPO, {}, id="ppo"),
    pytest.param(PPO, {"value_loss": "clipped", "normalise_advantages": "batch"}, id="ppo-clipped-value"),
    pytest.param(PPO, {"value_loss": "huber", "entropy_coef": 0.01, "clip_range_high": 0.28}, id="ppo-huber"),
    pytest.param(PPO, {"kl_penalty": {"coef": 0.7}}, id="ppo-kl"),
    pytest.param(PPO, {"kl_penalty": {"target": 0.01, "clip": True}}, id="ppo-kl-adaptive"),
    pytest.param(RND, {"predictor_share": 1.0}, id="rnd"),
    pytest.param(A2C, {}, id="a2c"),
    pytest.param(A2C, {"n_step": 3, "normalise_advantages": True}, id="a2c-n-step"),
    pytest.param(IMPALA, {"num_minibatches": 2}, id="impala"),
    pytest.param(REINFORCE, {}, id="reinforce"),
    pytest.param(REINFORCE, {"baseline": "value", "reward_to_go": False}, id="reinforce-value"),
]


def build(kind: Any, **settings: Any) -> Algorithm[Any, Any, Any]:
    algorithm: Algorithm[Any, Any, Any] = kind(kind.Config(**settings))
    return algorithm


def models_for(algorithm: Algorithm[Any, Any, Any], policy: ActorCritic) -> dict[str, torch.nn.Module]:
    return with_own_models(algorithm, {"actor_critic": policy})


def minibatches_of(algorithm: Any, policy: ActorCritic, batch: GymBatch) -> list[ActorCriticMinibatch]:
    context = context_of(models_for(algorithm, policy))
    return list(algorithm.minibatches(context, algorithm.prepare(context, batch)))


def gradient_of(
    algorithm: Algorithm[Any, Any, Any], policy: ActorCritic, minibatch: ActorCriticMinibatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """All parameters' gradients as one vector, and the metrics with the loss among them."""
    policy.zero_grad()
    loss, metrics, _ = algorithm.loss(context_of(models_for(algorithm, policy)), minibatch)
    torch.autograd.backward(loss)
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
    return torch.cat([g.flatten() for g in gradient]), {**metrics, "loss": loss.detach()}


@pytest.mark.parametrize("recurrent", ["none", "lstm"])
@pytest.mark.parametrize(("kind", "settings"), ALGORITHMS)
def test_gradients_and_metrics_of_shards_add_up_to_those_of_the_whole(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: Any, settings: Mapping[str, Any], recurrent: str
) -> None:
    policy = make_policy(recurrent=recurrent)
    algorithm = build(kind, **settings)
    for minibatch in minibatches_of(algorithm, policy, make_batch(policy, lag=0.3))[:4]:
        whole, whole_metrics = gradient_of(algorithm, policy, minibatch)
        assert bool(whole.any())
        for num_processes in (2, 3):
            parts = [
                gradient_of(algorithm, policy, next(iter(minibatch.shards(r, num_processes))))
                for r in range(num_processes)
            ]
            torch.testing.assert_close(torch.stack([g for g, _ in parts]).sum(0), whole, atol=1e-6, rtol=1e-5)
            for name, value in whole_metrics.items():
                total = torch.stack([metrics[name] for _, metrics in parts]).sum()
                torch.testing.assert_close(total, value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("kind", "settings"), ALGORITHMS)
def test_a_loss_compiles_as_one_graph(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: Any, settings: Mapping[str, Any]
) -> None:
    # backend="eager" traces and guards as the real one does, and spares the C++ compiler.
    policy = make_policy()
    algorithm = build(kind, **settings)
    context = context_of(models_for(algorithm, policy))
    compiled: Callable[..., Any] = torch.compile(algorithm.loss, fullgraph=True, dynamic=False, backend="eager")
    for minibatch in minibatches_of(algorithm, policy, make_batch(policy, lag=0.3))[:2]:
        loss, metrics, _ = compiled(context, minibatch)
        expected, expected_metrics, _ = algorithm.loss(context, minibatch)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(metrics, expected_metrics)


@pytest.mark.parametrize(("kind", "settings"), ALGORITHMS)
def test_dead_steps_at_the_end_change_no_gradient(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: Any, settings: Mapping[str, Any]
) -> None:
    policy = make_policy()
    algorithm = build(kind, **{**settings, **({} if kind in (A2C, REINFORCE) else {"num_minibatches": 1})})
    short = make_batch(policy, lag=0.3, end_rate=0.0)
    short.steps.truncated[-1] = True  # as whole episodes end; a fragment that ends there bootstraps from the same value
    index = torch.tensor([[len(short.steps.mask) - 1, b] for b in range(short.steps.mask.shape[1])])
    short = replace(short, final_index=index, final_observations=short.last_observations)
    long = replace(short, steps=short.steps.map(pad))
    of_short, of_long = (gradient_of(algorithm, policy, minibatches_of(algorithm, policy, b)[0]) for b in (short, long))
    torch.testing.assert_close(of_long, of_short)


@pytest.mark.parametrize(("kind", "settings"), ALGORITHMS)
def test_what_stands_at_a_dead_step_changes_no_gradient(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: Any, settings: Mapping[str, Any]
) -> None:
    policy = make_policy()
    batch = make_batch(policy, lag=0.3, dead_rate=0.3)
    assert not bool(batch.steps.mask.all())
    spoilt = batch.with_rewards(torch.where(batch.steps.mask, batch.steps.rewards, 1e3))
    algorithm = build(kind, **settings)
    plain, other = (gradient_of(algorithm, policy, minibatches_of(algorithm, policy, b)[0])[0] for b in (batch, spoilt))
    assert torch.equal(plain, other)


def pad(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, torch.zeros_like(tensor[:3])])


def test_ppo_equals_a_loop_over_samples(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy()
    batch = make_batch(policy, lag=0.4)
    algorithm = build(PPO, num_minibatches=1, clip_range=0.2, clip_range_high=0.3, entropy_coef=0.02, value_coef=0.4)
    (minibatch, *_) = minibatches_of(algorithm, policy, batch)
    values, next_values = policy.bootstrap(batch)
    num_steps, _ = batch.shape

    def advantage(t: int, b: int) -> float:
        total, weight = 0.0, 1.0
        for k in range(t, num_steps):
            after = 0.0 if batch.steps.terminated[k, b] else float(next_values[k, b])
            total += weight * (float(batch.steps.rewards[k, b]) + 0.99 * after - float(values[k, b]))
            if (
                batch.steps.terminated[k, b]
                or batch.steps.truncated[k, b]
                or k + 1 == num_steps
                or not batch.steps.mask[k + 1, b]
            ):
                return total
            weight *= 0.99 * 0.95
        raise AssertionError

    valid = [(int(t), int(b)) for t, b in batch.steps.mask.nonzero()]
    advantages = {step: advantage(*step) for step in valid}
    mean = sum(advantages.values()) / len(valid)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in advantages.values()) / len(valid))
    total = torch.zeros(())
    clipped = 0
    for t, b in valid:
        params, value, _ = policy({"observation": batch.steps.observations["observation"][t, b]})
        assert value is not None
        logprobs = params.log_softmax(-1)
        ratio = (logprobs[batch.steps.actions[t, b]] - batch.steps.behaviour_logprobs[t, b]).exp()
        normalised = (advantages[t, b] - mean) / (deviation + 1e-8)
        surrogate = torch.minimum(ratio * normalised, ratio.clamp(0.8, 1.3) * normalised)
        error = value - (advantages[t, b] + float(values[t, b]))
        entropy = -(logprobs.exp() * logprobs).sum()
        total = total + (-surrogate + 0.4 * 0.5 * error**2 - 0.02 * entropy) / len(valid)
        clipped += int(not 0.8 <= float(ratio.detach()) <= 1.3)
    policy.zero_grad()
    torch.autograd.backward(total)
    expected = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    gradient, metrics = gradient_of(algorithm, policy, minibatch)
    torch.testing.assert_close(metrics["loss"], total.detach())
    torch.testing.assert_close(gradient, expected)
    assert 0 < clipped < len(valid)
    assert float(metrics["clip_fraction"]) == pytest.approx(clipped / len(valid))


def test_ppo_normalises_the_advantages_of_each_minibatch_by_its_own_moments(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy()
    for minibatch in minibatches_of(build(PPO, num_minibatches=3), policy, make_batch(policy)):
        valid = minibatch.rows.targets.advantages[minibatch.rows.mask.bool()]
        assert float(valid.mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(valid.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_the_value_clip_holds_the_critic_near_its_values_from_before_the_update(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy()
    batch = make_batch(policy)
    algorithm = build(PPO, value_loss="clipped", value_clip_range=0.1, num_minibatches=1)
    (first, *_) = minibatches_of(algorithm, policy, batch)
    before, _ = policy.bootstrap(batch)
    assert policy.value_head is not None
    with torch.no_grad():
        policy.value_head.bias.add_(0.5)  # beyond the clip: what pulls back counts in full, what leaps further does not
    errors = (before.flatten() + 0.5 - first.rows.targets.returns, before.flatten() + 0.1 - first.rows.targets.returns)
    worse = torch.maximum(errors[0].square(), errors[1].square())[first.rows.mask.bool()]
    _, metrics = gradient_of(algorithm, policy, first)
    torch.testing.assert_close(metrics["value_loss"], 0.5 * worse.mean())


def test_on_policy_ppo_clips_nothing_before_its_first_update(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy()
    for minibatch in minibatches_of(build(PPO), policy, make_batch(policy))[:4]:
        _, metrics = gradient_of(build(PPO), policy, minibatch)
        assert float(metrics["clip_fraction"]) == 0.0
        assert float(metrics["approx_kl"]) == pytest.approx(0.0, abs=1e-6)


SAME = {"discount": 0.9, "value_coef": 0.3, "entropy_coef": 0.05}


@pytest.mark.parametrize("recurrent", ["none", "gru"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param(PPO, {"gae_lambda": 1.0, "num_minibatches": 1, "normalise_advantages": "none"}, id="ppo"),
        pytest.param(IMPALA, {}, id="impala"),
        pytest.param(REINFORCE, {"baseline": "value"}, id="reinforce"),
        pytest.param(A2C, {"n_step": 100}, id="a2c-n-step"),
    ],
)
def test_on_policy_every_algorithm_takes_the_step_of_a2c(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: Any, settings: Mapping[str, Any], recurrent: str
) -> None:
    policy = make_policy(recurrent=recurrent)
    batch = make_batch(policy, dead_rate=0.0)
    reference, algorithm = build(A2C, **SAME), build(kind, **SAME, **settings)
    expected, _ = gradient_of(reference, policy, minibatches_of(reference, policy, batch)[0])
    gradient, _ = gradient_of(algorithm, policy, minibatches_of(algorithm, policy, batch)[0])
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_truncation_bootstraps_from_the_true_final_observation(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy()
    batch = make_batch(policy, dead_rate=0.0, end_rate=0.5)
    prepared = build(PPO, gae_lambda=0.0, discount=0.9, normalise_advantages="none").prepare(
        context_of({"actor_critic": policy}), batch
    )
    returns = prepared.targets.returns.view(batch.shape)
    with torch.no_grad():
        final_values = policy(batch.final_observations).values
    assert final_values is not None
    kinds = set()
    for (t, b), value in zip(batch.final_index.tolist(), final_values, strict=True):
        kinds.add(bool(batch.steps.truncated[t, b]))
        bootstrap = 0.9 * value if batch.steps.truncated[t, b] else 0.0
        torch.testing.assert_close(returns[t, b], batch.steps.rewards[t, b] + bootstrap)
    assert kinds == {True, False}


@pytest.mark.parametrize(("pg_rho_bar", "pg_bound"), [(None, 1.5), (0.8, 0.8)])
def test_impala_clips_the_ratio_of_a_lagging_policy_as_vtrace_does(
    make_policy: MakePolicy, make_batch: MakeBatch, pg_rho_bar: float | None, pg_bound: float
) -> None:
    policy = make_policy()
    batch = make_batch(policy, lag=1.0, dead_rate=0.0, end_rate=2.0)  # episodes of one step: no trace to follow
    algorithm = build(IMPALA, rho_bar=1.5, pg_rho_bar=pg_rho_bar, discount=0.9)
    (minibatch,) = minibatches_of(algorithm, policy, batch)
    values, next_values = policy.bootstrap(batch)
    ratio = ratio_of(policy, batch)
    error = batch.steps.rewards + 0.9 * next_values * ~batch.steps.terminated - values
    targets = minibatch.rows.targets
    torch.testing.assert_close(targets.returns.view(batch.shape), values + ratio.clamp(max=1.5) * error)
    torch.testing.assert_close(targets.advantages.view(batch.shape), error)
    _, metrics = gradient_of(algorithm, policy, minibatch)
    assert 0 < float(metrics["clip_fraction"]) == pytest.approx(float((ratio > 1.5).float().mean()))
    with torch.no_grad():  # an update between: the targets stay, the ratio in the policy gradient does not
        policy.policy_head.weight.mul_(0.5)
    moved = ratio_of(policy, batch)
    assert not torch.allclose(moved, ratio, atol=0.1)
    logprobs = moved.log() + batch.steps.behaviour_logprobs
    _, metrics = gradient_of(algorithm, policy, minibatch)
    torch.testing.assert_close(metrics["policy_loss"], -(logprobs * moved.clamp(max=pg_bound) * error).mean())


def ratio_of(policy: ActorCritic, batch: GymBatch) -> Tensor:
    with torch.no_grad():
        logprobs = policy.distribution.log_prob(policy(batch.steps.observations).params, batch.steps.actions)
    return torch.exp(logprobs - batch.steps.behaviour_logprobs)


@pytest.mark.parametrize("kind", [PPO, A2C, IMPALA])
def test_an_algorithm_with_a_critic_refuses_a_policy_without(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: Any
) -> None:
    policy = make_policy(with_critic=False)
    with pytest.raises(ValueError, match=f"{kind.name} needs a critic and the policy has none"):
        build(kind).prepare(context_of({"actor_critic": policy}), make_batch(policy))


@pytest.mark.parametrize("kind", [PPO, A2C, IMPALA, REINFORCE])
def test_a_config_refuses_what_it_does_not_know_and_survives_a_round_trip(kind: Any) -> None:
    config = kind.Config()
    assert config.name == kind.name
    assert kind.Config.model_validate_json(config.model_dump_json()) == config
    assert all(field.description for field in kind.Config.model_fields.values())
    with pytest.raises(ValidationError, match="clip_rnage"):
        kind.Config(clip_rnage=0.1)


def test_ppo_stops_early_only_beyond_its_target_kl() -> None:
    algorithm, never = PPO(PPO.Config(target_kl=0.02)), PPO(PPO.Config())
    assert algorithm.stops_early({"approx_kl": torch.tensor(0.021)})
    assert not algorithm.stops_early({"approx_kl": torch.tensor(0.019)})
    assert not never.stops_early({"approx_kl": torch.tensor(9.0)})
    assert isinstance(algorithm, StopsEarly) and not isinstance(build(A2C), StopsEarly)


def test_ppo_makes_all_its_epochs(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy()
    minibatches = minibatches_of(build(PPO, epochs=3, num_minibatches=5), policy, make_batch(policy))
    assert [m.ends_epoch for m in minibatches] == ([False] * 4 + [True]) * 3


@pytest.mark.parametrize(("kind", "settings"), ALGORITHMS)
def test_every_algorithm_learns_which_action_is_right(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: Any, settings: Mapping[str, Any]
) -> None:
    # One-step episodes; the right action is the sign of the first number seen. Seeded; chance is 1/4. From fewer than
    # 0.4 to at least 0.9 in 60 steps leaves no room for a gradient of the wrong sign or of the wrong action.
    policy = make_policy(seed=3)
    algorithm = build(kind, **settings)
    context = context_of(models_for(algorithm, policy))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    rates = []
    for step in range(60):
        batch = make_batch(policy, num_steps=4, num_envs=32, seed=step, dead_rate=0.0, end_rate=2.0)
        right = (batch.steps.observations["observation"][..., 0] > 0).long()
        rates.append(float((batch.steps.actions == right).float().mean()))
        steps = replace(
            batch.steps,
            rewards=(batch.steps.actions == right).float(),
            terminated=batch.steps.mask,
            truncated=~batch.steps.mask,
        )
        batch = replace(batch, steps=steps)
        for minibatch in algorithm.minibatches(context, algorithm.prepare(context, batch)):
            optimizer.zero_grad()
            torch.autograd.backward(algorithm.loss(context, minibatch).loss)
            optimizer.step()
    assert rates[0] < 0.4
    assert sum(rates[-5:]) / 5 >= 0.9
