"""DQN: its loss against the definition, what the network's settings mean, and how actors explore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rollcall.cluster.messages.steps import EnvSteps, Unroll
from rollcall.learners.algorithm import Context, with_own_models
from rollcall.learners.algorithms.control.off_policy.dqn import DQN
from rollcall.learners.algorithms.control.off_policy.dqn_config import DQNConfig
from rollcall.learners.batches.replay_batch import ReplayBatch, ReplayMinibatch, Transitions
from rollcall.learners.collective import Collective
from rollcall.learners.models.flat import module_weights
from rollcall.learners.models.judging import Judging
from rollcall.learners.models.networks import ActorCritic, build_actor_critic
from rollcall.learners.models.policy import TorchPolicy
from rollcall.learners.models.policy_config import PolicyConfig
from rollcall.learners.models.q_config import QConfig
from rollcall.learners.models.q_heads import NoisyLinear
from tests.learners.conftest import MakeBatch, MakePolicy

SPACES = (gym.spaces.Box(-1.0, 1.0, (3,), np.float32), gym.spaces.Discrete(4))


def _config(**q: Any) -> PolicyConfig:
    return PolicyConfig(hidden_sizes=(8,), orthogonal_init=False, q=QConfig(**q))


def _network(*, seed: int = 1, **q: Any) -> ActorCritic:
    return build_actor_critic(*SPACES, _config(**q), with_critic=False, seed=seed)


def _context(algorithm: DQN, network: ActorCritic, *, target_seed: int = 2) -> Context:
    """With a target network that has gone another way."""
    models = with_own_models(algorithm, {"actor_critic": network})
    other = build_actor_critic(*SPACES, network.config, with_critic=False, seed=target_seed)
    models["target_actor_critic"].load_state_dict(other.state_dict())
    return Context(models, torch.Generator().manual_seed(0), Collective(), SPACES)


def _transitions(number: int = 6, *, masked: bool = False) -> Transitions:
    generator = torch.Generator().manual_seed(5)
    allowed = torch.rand(number, 4, generator=generator) < 0.6
    allowed[:, 0] = True
    return Transitions(
        observations={"observation": torch.randn(number, 3, generator=generator)},
        actions=torch.randint(0, 4, (number,), generator=generator),
        rewards=torch.randn(number, generator=generator),
        discounts=torch.where(torch.arange(number) % 3 == 0, 0.0, 0.9),
        next_observations={"observation": torch.randn(number, 3, generator=generator)},
        weights=torch.rand(number, generator=generator) + 0.5,
        next_action_mask=allowed if masked else None,
    )


def _values(network: ActorCritic, observation: Tensor) -> list[float]:
    assert network.q is not None
    return network.q.values(network.action_returns({"observation": observation.unsqueeze(0)}))[0].tolist()


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_loss_is_that_of_a_loop_over_transitions(double: bool, masked: bool) -> None:
    algorithm, network = DQN(DQNConfig(double=double)), _network(dueling=True)
    context, rows = _context(algorithm, network), _transitions(masked=masked)
    target = context.models["target_actor_critic"]
    assert isinstance(target, ActorCritic)
    (minibatch,) = ReplayBatch([rows], added=None).minibatches()  # type: ignore[arg-type]
    loss = algorithm.loss(context, minibatch)
    total, errors = 0.0, []
    for i in range(6):
        now, later = _values(network, rows.observations["observation"][i]), rows.next_observations["observation"][i]
        judged = _values(network if double else target, later)
        allowed = range(4) if rows.next_action_mask is None else np.flatnonzero(rows.next_action_mask[i]).tolist()
        best = max(allowed, key=lambda action: judged[action])
        aim = float(rows.rewards[i]) + float(rows.discounts[i]) * _values(target, later)[best]
        error = aim - now[int(rows.actions[i])]
        errors.append(abs(error))
        huber = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
        total += float(rows.weights[i]) * huber / 6
    assert float(loss.loss.detach()) == pytest.approx(total, rel=1e-5)
    assert loss.per_sample is not None
    assert loss.per_sample.tolist() == pytest.approx(errors, rel=1e-5)
    assert float(loss.metrics["td_error"]) == pytest.approx(np.mean(errors), rel=1e-5)


@pytest.mark.parametrize("q", [{}, {"returns": "categorical"}, {"returns": "quantiles", "noisy": True}])
def test_parts_of_a_minibatch_add_up_to_the_whole(q: Mapping[str, Any]) -> None:
    algorithm, network = DQN(DQNConfig()), _network(**q)
    context = _context(algorithm, network)
    batch = ReplayBatch([_transitions(), _transitions(6, masked=True)], added=None)  # type: ignore[arg-type]
    drawn = list(algorithm.minibatches(context, batch))
    assert [minibatch.ends_epoch for minibatch in drawn] == [False, True]
    for number, minibatch in enumerate(drawn):
        whole = algorithm.loss(context, minibatch)
        parts = [algorithm.loss(context, part) for rank in range(3) for part in minibatch.shards(rank, 3)]
        assert torch.allclose(torch.stack([part.loss for part in parts]).sum(), whole.loss)
        assert whole.per_sample is not None and len(whole.per_sample) == 12
        added = torch.stack([part.per_sample for part in parts if part.per_sample is not None]).sum(0)
        assert torch.allclose(added, whole.per_sample)
        other = slice(6, 12) if number == 0 else slice(0, 6)
        assert (whole.per_sample[other] == 0).all()


def test_the_target_network_moves_every_so_many_gradient_steps() -> None:
    algorithm, network = DQN(DQNConfig(target_every=3, target_rate=0.5)), _network()
    context = _context(algorithm, network)
    target = context.models["target_actor_critic"].state_dict()["policy_head.weight"]
    before, goal = target.clone(), network.policy_head.weight.detach()
    for step in range(1, 4):
        algorithm.after_step(context)
        expected = torch.lerp(before, goal, 0.5) if step == 3 else before
        assert torch.equal(target, expected)


def test_a_histogram_whose_mass_is_in_one_bin_has_its_value() -> None:
    network = _network(returns="categorical", atoms=11, least_return=-5.0, most_return=5.0)
    assert network.q is not None
    returns = torch.full((1, 4, 11), -1e4)
    returns[0, torch.arange(4), torch.tensor([0, 3, 5, 10])] = 0.0
    assert network.q.values(returns)[0].tolist() == pytest.approx([-5.0, -2.0, 0.0, 5.0])


def test_dueling_streams_are_a_value_and_advantages_of_mean_zero() -> None:
    network = _network(dueling=True)
    assert network.q is not None
    outputs = torch.tensor([[1.0, 2.0, 3.0, 6.0, 10.0]])  # four actions', then the state's
    assert network.q.values(network.q(outputs))[0].tolist() == [8.0, 9.0, 10.0, 13.0]


def test_noise_in_weights_is_drawn_anew_and_is_none_in_the_mean() -> None:
    layer, inputs = NoisyLinear(3, 2, 0.5), torch.tensor([[1.0, -2.0, 0.5]])
    plain = inputs @ layer.weight.T + layer.bias
    assert torch.equal(layer(inputs), torch.nn.functional.linear(inputs, layer.weight, layer.bias))
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for _ in range(1000):
        layer.draw(generator)
        outputs.append(layer(inputs).detach())
    found = torch.cat(outputs)
    spread = found.std(0)
    assert (spread > 0.1).all()
    assert ((found.mean(0) - plain[0]).abs() < 4 * spread / 1000**0.5).all()


def test_epsilon_falls_over_env_steps_and_is_spread_over_envs() -> None:
    algorithm = DQN(DQNConfig(epsilon=0.4, epsilon_steps=100, epsilon_spread=7.0))
    assert algorithm.epsilons(0, 1).tolist() == [1.0]
    assert algorithm.epsilons(50, 1).tolist() == pytest.approx([0.7])
    spread = algorithm.epsilons(500, 4).tolist()
    assert spread == pytest.approx([0.4 ** (1 + 7 * i / 3) for i in range(4)])


def test_actors_explore_by_the_epsilons_in_the_weights() -> None:
    """Env i of the run by the (i mod 2)-th; evaluation by none. 600 steps: within 4 standard deviations."""
    network = _network(epsilons=2)
    assert network.exploration is not None
    network.exploration.epsilons.copy_(torch.tensor([0.0, 0.5]))
    weights = module_weights({"actor_critic": network}, "policy", epoch=1, version=3)
    policy = TorchPolicy(*SPACES, _config(epsilons=2), weights=weights)
    shown = {"observation": np.array([[0.1, 0.2, 0.3]] * 3, np.float32)}
    best = int(np.argmax(_values(network, torch.tensor([0.1, 0.2, 0.3]))))

    def share_of_best(*, first_env: int, greedy: bool) -> list[float]:
        settings = {"num_steps": 600, "num_envs": 3, "seed": 4, "recurrent_state": None}
        rollout = policy.rollout(**settings, greedy=greedy, first_env=first_env)  # type: ignore[arg-type]
        taken = [rollout.act(shown, episode_starts=np.zeros(3, bool))[0].copy() for _ in range(600)]
        logprobs = rollout.behaviour_logprobs()
        explored = np.stack(taken) != best
        assert logprobs[explored] == pytest.approx(np.full(explored.sum(), np.log(0.5 / 4)), abs=1e-5)
        share: list[float] = (1 - explored.mean(0)).tolist()
        return share

    bound = 4 * (0.625 * 0.375 / 600) ** 0.5
    assert share_of_best(first_env=0, greedy=False) == pytest.approx([1.0, 0.625, 1.0], abs=bound)
    assert share_of_best(first_env=3, greedy=False) == pytest.approx([0.625, 1.0, 0.625], abs=bound)
    assert share_of_best(first_env=0, greedy=True) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("q", [{}, {"dueling": True}, {"returns": "quantiles", "atoms": 5, "noisy": True}])
def test_an_actor_takes_the_action_that_the_learner_thinks_best(q: Mapping[str, Any]) -> None:
    network = _network(**q)
    weights = module_weights({"actor_critic": network}, "policy", epoch=1, version=0)
    policy = TorchPolicy(*SPACES, _config(**q), weights=weights)
    shown = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    rollout = policy.rollout(num_steps=1, num_envs=20, seed=0, recurrent_state=None, greedy=True)
    taken = rollout.act({"observation": shown}, episode_starts=np.zeros(20, bool))[0]
    assert taken.tolist() == [int(np.argmax(_values(network, torch.from_numpy(row)))) for row in shown]


def test_an_actor_judges_its_steps_as_a_loop_over_them_does() -> None:
    """Three steps, or fewer at a termination, a truncation, a dead step and the unit's end."""
    network, rng, n_step = _network(dueling=True), np.random.default_rng(3), 3
    weights = module_weights({"actor_critic": network}, "policy", epoch=1, version=0)
    policy = TorchPolicy(*SPACES, _config(dueling=True), weights=weights, judging=Judging(0.9, n_step))
    shown = rng.normal(size=(6, 2, 3)).astype(np.float32)
    last, finals = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    terminated, truncated, mask = (np.zeros((6, 2), bool) for _ in range(3))
    terminated[1, 0], truncated[3, 1], mask[:] = True, True, True
    mask[2, 0] = False  # the dead step after an end
    rollout = policy.rollout(num_steps=6, num_envs=2, seed=0, recurrent_state=None)
    actions = [rollout.act({"observation": now}, episode_starts=np.zeros(2, bool))[0].copy() for now in shown]
    rewards = rng.normal(size=(6, 2)).astype(np.float32)
    steps = EnvSteps(
        {"observation": shown}, np.stack(actions), rewards, rewards, terminated, truncated, mask, np.zeros((6, 2), bool)
    )
    index = np.array([[1, 0], [3, 1]], np.int64)
    unroll = Unroll(steps, {"observation": last}, index, {"observation": finals})
    found = policy.td_errors(rollout, unroll)
    assert found is not None
    for t, b in np.argwhere(mask):
        total, discount = 0.0, 1.0
        for k in range(t, min(t + n_step, 6)):
            total, discount = total + discount * float(rewards[k, b]), discount * 0.9
            then = last[b] if k == 5 else shown[k + 1, b]
            if terminated[k, b] or truncated[k, b]:
                then = finals[0 if terminated[k, b] else 1]
                discount *= float(truncated[k, b])
                break
        aim = total + discount * max(_values(network, torch.from_numpy(then)))
        said = _values(network, torch.from_numpy(shown[t, b]))[int(actions[t][b])]
        assert found[t, b] == pytest.approx(abs(aim - said), abs=1e-4)
    assert found[2, 0] == 0.0


def test_what_does_not_go_with_values_of_actions_is_refused(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    with pytest.raises(ValueError, match="q=None: dqn learns the values of actions"):
        DQN(DQNConfig()).check_models({"actor_critic": make_policy()})
    with pytest.raises(ValueError, match="Discrete space alone"):
        build_actor_critic(SPACES[0], SPACES[0], _config(), with_critic=False, seed=0)
    with pytest.raises(ValueError, match="recurrent=lstm does not go with q"):
        PolicyConfig(recurrent="lstm", q=QConfig())


def test_minibatches_know_their_places() -> None:
    batch = ReplayBatch([_transitions(3), _transitions(3)], added=None)  # type: ignore[arg-type]
    second: ReplayMinibatch = list(batch.minibatches())[1]
    assert second.per_sample(torch.tensor([1.0, 2.0, 3.0])).tolist() == [0, 0, 0, 1, 2, 3]
