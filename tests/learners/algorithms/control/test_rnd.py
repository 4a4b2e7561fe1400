"""Random network distillation: what is new pays, and pays less once seen; its return knows no episode's end, the env's
does; nothing trains the random network, and all of it is in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithm import with_own_models
from rollcall.learners.algorithms.control.ppo import PPO
from rollcall.learners.algorithms.control.ppo_config import PPOConfig
from rollcall.learners.algorithms.control.rnd import RND
from rollcall.learners.algorithms.control.rnd_config import RND_NETWORKS, RNDConfig
from rollcall.learners.batches.gym_batch import GymBatch, next_observations
from rollcall.learners.maths.returns import endless_gae, running_returns
from rollcall.learners.models.distillation import RandomNetworkDistillation
from rollcall.learners.models.networks import ActorCritic
from tests.learners.conftest import OBSERVATION_SPACE
from tests.learners.experience import cartpole, context_of, make_learner

MakePolicy = Callable[..., ActorCritic]
MakeBatch = Callable[..., GymBatch]


def random_stream(num_steps: int, num_envs: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, num_steps, num_envs, generator=generator, dtype=torch.float64)
    mask = torch.rand(num_steps, num_envs, generator=generator) < 0.7
    return rewards, values, torch.randn(num_envs, generator=generator, dtype=torch.float64), mask


@pytest.mark.parametrize("seed", range(5))
def test_endless_advantages_equal_a_loop_over_the_steps_that_are_not_dead(seed: int) -> None:
    rewards, values, last, mask = random_stream(9, 3, seed)
    found = endless_gae(rewards=rewards, values=values, last_values=last, discount=0.9, lam=0.8, mask=mask)
    for b in range(3):
        alive = [t for t in range(9) if mask[t, b]]
        advantage, following = 0.0, float(last[b])
        for t in reversed(alive):
            delta = float(rewards[t, b]) + 0.9 * following - float(values[t, b])
            advantage = delta + 0.9 * 0.8 * advantage
            following = float(values[t, b])
            assert float(found.advantages[t, b]) == pytest.approx(advantage)
            assert float(found.returns[t, b]) == pytest.approx(advantage + following)
    assert bool((found.advantages[~mask] == 0).all())


@pytest.mark.parametrize("seed", range(3))
def test_running_returns_equal_a_loop_forwards(seed: int) -> None:
    rewards, _, before, mask = random_stream(9, 3, seed)
    found = running_returns(rewards=rewards, before=before, discount=0.9, mask=mask)
    for b in range(3):
        running = float(before[b])
        for t in range(9):
            if mask[t, b]:
                running = 0.9 * running + float(rewards[t, b])
            assert float(found[t, b]) == pytest.approx(running)


def test_a_step_leads_to_the_next_observation_or_to_the_true_last_one(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    batch = make_batch(make_policy(), end_rate=0.5)
    found = next_observations(batch)["observation"]
    ends = {(t, b): k for k, (t, b) in enumerate(batch.final_index.tolist())}
    assert len(ends) > 3
    num_steps, num_envs = batch.shape
    for t in range(num_steps):
        for b in range(num_envs):
            if (t, b) in ends:
                expected = batch.final_observations["observation"][ends[t, b]]
            elif t + 1 < num_steps:
                expected = batch.steps.observations["observation"][t + 1, b]
            else:
                expected = batch.last_observations["observation"][b]
            assert torch.equal(found[t, b], expected)


def test_what_was_seen_becomes_known_and_what_was_not_does_not() -> None:
    torch.manual_seed(0)
    networks = RandomNetworkDistillation({"observation": OBSERVATION_SPACE}, (32,))
    seen = {"observation": torch.randn(64, 3) * 0.3}
    other = {"observation": torch.randn(64, 3) * 0.3 + 3.0}
    before = [float(networks.error(where).detach().mean()) for where in (seen, other)]
    fixed = {name: value.clone() for name, value in networks.target.state_dict().items()}
    assert not list(networks.target.parameters()) and len(fixed) == 4
    optimizer = torch.optim.Adam(networks.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        torch.autograd.backward(networks.error(seen).mean())
        optimizer.step()
    after = [float(networks.error(where).detach().mean()) for where in (seen, other)]
    assert after[0] < 0.02 * before[0]
    assert after[1] > 10 * after[0]
    assert all(torch.equal(value, fixed[name]) for name, value in networks.target.state_dict().items())


def test_rewards_have_the_scale_of_their_returns_whatever_that_of_the_errors() -> None:
    errors = torch.rand(40, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(40, 8, dtype=torch.bool)
    scaled = []
    for factor in (1.0, 1000.0):
        networks = RandomNetworkDistillation({"observation": OBSERVATION_SPACE}, (4,))
        for _ in range(5):
            rewards = networks.rewards(factor * errors, discount=0.9, mask=mask)
        scaled.append(rewards)
        networks.rewards(errors * float("nan"), discount=0.9, mask=mask)  # and that leaves no trace
        assert bool(networks.return_moments.mean.isfinite()) and bool(networks.collected.isfinite())
    torch.testing.assert_close(scaled[0], scaled[1], rtol=1e-4, atol=0.0)


def test_the_env_s_reward_ends_with_an_episode_and_novelty_s_does_not(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    """With every step an episode's end, PPO's advantages are those of single steps; novelty's credit goes through."""
    policy = make_policy()
    batch = make_batch(policy, dead_rate=0.0, end_rate=2.0)
    algorithm = RND(RNDConfig(extrinsic_coef=1.0, normalise_advantages="none", gae_lambda=1.0))
    models = with_own_models(algorithm, {"actor_critic": policy})
    prepared = algorithm.prepare(context_of(models), batch)
    alone = PPO(PPOConfig(normalise_advantages="none", gae_lambda=1.0)).prepare(context_of(models), batch)
    networks: Any = models[RND_NETWORKS]
    with torch.no_grad():
        errors = networks.error(next_observations(batch)) * networks.return_moments.scale
        values = networks.values(batch.steps.observations)
        running = networks.values(batch.last_observations)
    for t in reversed(range(len(errors))):
        running = errors[t] + 0.99 * running
        row = slice(t * 4, t * 4 + 4)
        novel = prepared.targets.policy.advantages[row] - alone.targets.advantages[row]
        torch.testing.assert_close(novel, running - values[t], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prepared.targets.intrinsic_returns[row], running, rtol=1e-4, atol=1e-4)
    assert torch.equal(prepared.targets.policy.returns, alone.targets.returns)


def test_a_restored_learner_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = RNDConfig(epochs=1, num_minibatches=2)
    learner: Any = make_learner(RND(config))
    reports = [learner.update([cartpole(learner.weights(epoch=1, version=0))], StepOrder(0, 1, 0.0))[0]]
    learner.save(tmp_path, learner.weights(epoch=1, version=1))
    again: Any = make_learner(RND(config))
    again.restore(tmp_path)
    following = cartpole(learner.weights(epoch=1, version=1), ticket=1)
    for one in (learner, again):
        one.update([following], StepOrder(1, 1, 0.0))
    for name, tensor in learner._state_tensors().items():
        assert torch.equal(tensor, again._state_tensors()[name]), name
    found = reports[0].metrics
    assert found["intrinsic_reward"] > 0 and found["prediction_error"] > 0
    assert {"intrinsic_value_loss", "predictor_loss", "explained_variance", "clip_fraction"} <= found.keys()


def test_a_predictor_s_share_of_the_steps_weighs_as_all_of_them(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy()
    batch = make_batch(policy, num_steps=200, num_envs=20, seed=5)
    sums = []
    for share in (1.0, 0.25):
        algorithm = RND(RNDConfig(num_minibatches=1, epochs=1, predictor_share=share))
        context = context_of(with_own_models(algorithm, {"actor_critic": policy}))
        (minibatch,) = algorithm.minibatches(context, algorithm.prepare(context, batch))
        weights = minibatch.rows.targets.predicted
        assert set(weights.unique().tolist()) <= {0.0, 1.0 / share}
        assert bool((weights[minibatch.rows.mask == 0] == 0).all())
        sums.append(float(weights.sum()))
    assert sums[1] == pytest.approx(sums[0], rel=0.1)  # 3,400 draws of 1/4: five standard errors
