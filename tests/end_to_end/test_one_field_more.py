"""One more number per step, or per token, is one more field: of one class, and with it of trajectories, batches and
minibatches. Here it comes from an env and arrives in a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rollcall.actors.control import unroll as unroll_module
from rollcall.actors.control.actors_config import ActorsConfig
from rollcall.actors.control.gym_actor import GymActor
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.vector import Step
from rollcall.cluster.messages.attempt import Header, ShardPayload, Ticket
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.steps import A, EnvSteps, SampledTokens
from rollcall.cluster.messages.weights import Weights
from rollcall.learners.algorithm import Context, Loss
from rollcall.learners.algorithms.control.a2c import A2C
from rollcall.learners.algorithms.control.a2c_config import A2CConfig
from rollcall.learners.batches.token_batch import TokenMinibatch, collate_samples
from rollcall.learners.collators.control import ControlCollator
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.networks import build_actor_critic
from rollcall.learners.models.policy import TorchPolicy
from rollcall.learners.models.policy_config import PolicyConfig


@dataclass(frozen=True)
class StepsWithCosts(EnvSteps[A]):
    costs: A | None = None  # float32: what the action wore down


class WithCosts(A2C):
    """A2C whose loss has a look at them."""

    def __init__(self) -> None:
        super().__init__(A2CConfig())
        self.seen: list[Tensor] = []

    def loss(self, context: Context, minibatch: Any) -> Loss:
        found = super().loss(context, minibatch)
        steps = minibatch.rows.steps
        self.seen.append(steps.costs)
        cost = (steps.costs * steps.mask).sum() / minibatch.num_valid
        return Loss(found.loss, {**found.metrics, "cost": cost})


class OneVersion:
    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights:
        return self._weights


def costs_of(step: Step) -> np.ndarray[Any, Any]:
    return np.arange(len(step.rewards), dtype=np.float32) + step.rewards


@pytest.mark.parametrize("recurrent", ["none", "lstm"])
def test_a_field_more_of_a_step_arrives_in_the_loss(monkeypatch: pytest.MonkeyPatch, recurrent: Any) -> None:
    plain = unroll_module.outcome

    def outcome(step: Step) -> dict[str, Any]:
        return {**plain(step), "costs": costs_of(step)}

    monkeypatch.setattr(unroll_module, "EnvSteps", StepsWithCosts)
    monkeypatch.setattr(unroll_module, "outcome", outcome)
    policy, env = PolicyConfig(recurrent=recurrent), EnvConfig(id="CartPole-v1")
    algorithm = WithCosts()
    learner, spaces = learner_of(algorithm, policy)
    weights = learner.weights(epoch=1, version=0)
    actor = GymActor(
        actor_id="gym-0",
        run_seed=0,
        env_config=env,
        config=ActorsConfig(num_envs=4, unroll_length=16, num_shards=2),
        policy_factory=lambda: TorchPolicy(spaces[0], spaces[1], policy),
        weights_source=OneVersion(weights),
    )
    trajectories: list[Any] = [
        actor.produce(Ticket(Header(i, 1, 1), i, 0, i, ShardPayload(i, 0, "fragment"), 60.0))[1] for i in range(2)
    ]
    actor.close()
    report, _ = learner.update(trajectories, StepOrder(0, 1, 0.0))
    expected = np.concatenate([item.steps.costs for item in trajectories], axis=1)
    assert expected.shape == (16, 4) and expected.any()
    (seen,) = algorithm.seen
    assert torch.equal(seen.reshape(4, 16).T if recurrent == "lstm" else seen.reshape(16, 4), torch.tensor(expected))
    assert report.metrics["cost"] == pytest.approx(expected.mean(), rel=1e-6)
    without = replace(trajectories[0], unroll=replace(trajectories[0].unroll, steps=plain_steps(trajectories[0].steps)))
    assert trajectories[0].digest() != without.digest(), "and it is told apart by what was learnt from"


def plain_steps(steps: EnvSteps[Any]) -> EnvSteps[Any]:
    return EnvSteps(**{name: getattr(steps, name) for name in EnvSteps.__dataclass_fields__})


def learner_of(algorithm: A2C, policy: PolicyConfig) -> tuple[Learner, Any]:
    env = gym.make("CartPole-v1")
    spaces = (env.observation_space, env.action_space)
    network = build_actor_critic(*spaces, policy, with_critic=True, seed=3)
    learner = Learner(
        models={"actor_critic": network},
        algorithm=algorithm,
        config=LearnerConfig(),
        policy_id="policy",
        run_seed=0,
        collator=ControlCollator(network),
    )
    return learner, spaces


@dataclass(frozen=True)
class TokensWithTeacher(SampledTokens[A]):
    teacher_logprobs: A | None = None  # float32


def test_a_field_more_of_a_token_arrives_in_the_parts_of_a_minibatch() -> None:
    mask = np.array([False, True, True, False, True])
    said = np.arange(5, dtype=np.float32)
    trajectory = LMTrajectory(
        Header(0, 1, 1),
        row=0,
        sample_offsets=np.array([0, 3, 5]),
        token_ids=np.arange(5, dtype=np.int32),
        loss_mask=mask,
        tokens=TokensWithTeacher(np.zeros(5, np.float32), teacher_logprobs=said),
        version_spans=np.array([[1, 3, 0], [4, 5, 0]]),
        rewards=np.zeros(2, np.float32),
        finish_reasons=("stop", "stop"),
    )
    batch = collate_samples([trajectory], step=1)
    weights = torch.ones(3)
    minibatch: TokenMinibatch[Mapping[str, Tensor]] = TokenMinibatch(batch, weights, weights, {}, [[1], [0]])
    parts = [part.tokens for part in minibatch.shards(0, 1)]
    assert [part.teacher_logprobs.tolist() for part in parts] == [[4.0], [1.0, 2.0]]  # type: ignore[attr-defined]
