"""Tables as oracles: a network on one-hot states, given every outcome of a model as often as it is likely, must agree
with the table that is solved exactly. No sampling: what differs is a mistake."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.steps import EnvSteps, Unroll
from rollcall.learners.algorithm import with_own_models
from rollcall.learners.algorithms.control.a2c import A2C
from rollcall.learners.algorithms.control.impala import IMPALA
from rollcall.learners.algorithms.control.off_policy.dqn import DQN
from rollcall.learners.algorithms.control.ppo import PPO
from rollcall.learners.batches.gym_batch import stack_trajectories
from rollcall.learners.batches.replay_batch import ReplayBatch, Transitions
from rollcall.learners.collators.control import ControlCollator
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import Learner
from rollcall.learners.loop.optimizer_config import SGDConfig
from rollcall.learners.models.networks import ActorCritic, build_actor_critic
from rollcall.learners.models.policy_config import PolicyConfig
from rollcall.learners.models.q_config import QConfig
from rollcall.learners.tabular import planning
from rollcall.learners.tabular.model import Model
from tests.learners.experience import context_of
from tests.learners.tabular.worlds import LAKE, model_of, uniform

DISCOUNT = 0.9
THIRDS = 3  # an outcome of the lake has probability 1/3, or 1


def every_outcome(model: Model) -> GymTrajectory:
    """Each outcome of each pair in an env of its own, of one step: what a policy would meet that takes each action
    equally often in each state, in exactly the right proportion."""
    rows = [
        (state, action, int(model.next_states[i]), float(model.rewards[i]), bool(model.terminated[i]))
        for state in range(model.num_states)
        for action in range(model.num_actions)
        for i in range(*model.outcomes(state, action).indices(len(model.rewards)))
        for _ in range(round(float(model.probabilities[i]) * THIRDS))
    ]
    states, actions, following, rewards, terminated = (np.array(column) for column in zip(*rows, strict=True))
    ended = np.flatnonzero(terminated)
    nobody = np.zeros((1, len(rows)), bool)
    return GymTrajectory(
        header=Header(ticket_id=0, attempt=1, epoch=1, policy_id="policy", actor_id="test"),
        shard=0,
        incarnation=0,
        policy_version=0,
        unroll=Unroll(
            steps=EnvSteps(
                observations={"observation": states[None]},
                actions=actions[None],
                behaviour_logprobs=np.full((1, len(rows)), -np.log(model.num_actions), np.float32),
                rewards=rewards[None].astype(np.float32),
                terminated=terminated[None],
                truncated=nobody,
                mask=~nobody,
                episode_starts=~nobody,
            ),
            last_observations={"observation": following},
            final_index=np.stack([np.zeros_like(ended), ended], 1),
            final_observations={"observation": following[ended]},
        ),
    )


def table_network(model: Model, *, q: QConfig | None = None) -> ActorCritic:
    """Without hidden layers and biases: one number for each state, and for each pair."""
    spaces = gym.spaces.Discrete(model.num_states), gym.spaces.Discrete(model.num_actions)
    network = build_actor_critic(*spaces, PolicyConfig(hidden_sizes=(), q=q), with_critic=q is None, seed=0)
    for head in filter(None, (network.policy_head, network.value_head)):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        head.bias.requires_grad_(False)
    return network


def critics_values(network: ActorCritic) -> Array:
    assert network.value_head is not None
    return network.value_head.weight.detach().double().numpy()[0]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param(A2C, {"gae_lambda": 0.0}, id="a2c"),
        pytest.param(A2C, {"n_step": 1}, id="a2c-n-step"),
        pytest.param(PPO, {"gae_lambda": 0.0, "num_minibatches": 1, "epochs": 1}, id="ppo"),
        pytest.param(IMPALA, {"num_minibatches": 1}, id="impala"),
    ],
)
def test_a_critic_settles_at_the_exact_values_of_the_policy(kind: Any, settings: dict[str, Any]) -> None:
    model = model_of(LAKE)
    network = table_network(model)
    network.policy_head.weight.requires_grad_(False)  # the policy stays the uniform one
    # A squared loss of half the mean: this step size makes of each update about a whole sweep of policy evaluation.
    learner = Learner(
        models={"actor_critic": network},
        algorithm=kind(kind.Config(discount=DISCOUNT, value_coef=1.0, entropy_coef=0.0, **settings)),
        config=LearnerConfig(optimizer=SGDConfig(), learning_rate=model.num_states / 2, max_grad_norm=None),
        policy_id="policy",
        run_seed=0,
        collator=ControlCollator(network),
    )
    batch = [every_outcome(model)]
    for step in range(150):
        learner.update(batch, StepOrder(step=step, epoch=1, progress=0.0))
    exact, _ = planning.policy_evaluation(model, uniform(model), DISCOUNT)
    np.testing.assert_allclose(critics_values(network), exact, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param(A2C, {"gae_lambda": 0.0}, id="a2c"),
        pytest.param(PPO, {"gae_lambda": 0.0, "num_minibatches": 1, "normalise_advantages": "none"}, id="ppo"),
        pytest.param(IMPALA, {"num_minibatches": 1}, id="impala"),
    ],
)
def test_with_exact_values_an_actors_gradient_is_the_exact_policy_gradient(kind: Any, settings: dict[str, Any]) -> None:
    """The policy gradient theorem, the book's (13.5), over states that are equally often met: of the logit of a in s it
    is pi(a|s) [q(s, a) - v(s)] / S."""
    model = model_of(LAKE)
    network = table_network(model)
    policy = uniform(model)
    values = planning.closed_form(model, policy, DISCOUNT)
    assert network.value_head is not None
    network.value_head.weight.data[0] = torch.from_numpy(values)
    algorithm = kind(kind.Config(discount=DISCOUNT, value_coef=0.0, entropy_coef=0.0, **settings))
    context = context_of({"actor_critic": network})
    prepared = algorithm.prepare(context, stack_trajectories([every_outcome(model)]))
    (minibatch, *_) = algorithm.minibatches(context, prepared)
    torch.autograd.backward(algorithm.loss(context, minibatch)[0])
    exact = policy * (model.backup(values, DISCOUNT) - values[:, None]) / model.num_states
    assert network.policy_head.weight.grad is not None
    np.testing.assert_allclose(-network.policy_head.weight.grad.numpy().T, exact, atol=1e-7)


@pytest.mark.parametrize("double", [False, True])
def test_dqn_settles_at_the_optimal_action_values(double: bool) -> None:
    """Of each update the step size makes a whole sweep of value iteration, as the target follows after each."""
    model = model_of(LAKE)
    network = table_network(model, q=QConfig())
    algorithm = DQN(DQN.Config(discount=DISCOUNT, double=double, loss="mse", target_every=1))
    context = context_of(with_own_models(algorithm, {"actor_critic": network}))
    batch = stack_trajectories([every_outcome(model)])
    transitions = Transitions(
        observations={"observation": batch.steps.observations["observation"][0]},
        actions=batch.steps.actions[0],
        rewards=batch.steps.rewards[0],
        discounts=DISCOUNT * (~batch.steps.terminated[0]).float(),
        next_observations=batch.last_observations,
        weights=torch.ones_like(batch.steps.rewards[0]),
    )
    optimizer = torch.optim.SGD([network.policy_head.weight], lr=model.num_states * model.num_actions)
    for _ in range(150):
        (minibatch,) = ReplayBatch([transitions], batch).minibatches()
        optimizer.zero_grad()
        torch.autograd.backward(algorithm.loss(context, minibatch)[0])
        optimizer.step()
        algorithm.after_step(context)
    exact = model.backup(planning.optimum(model, DISCOUNT).values, DISCOUNT)
    np.testing.assert_allclose(network.policy_head.weight.detach().numpy().T, exact, atol=1e-5)
