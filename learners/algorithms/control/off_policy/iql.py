"""IQL (Kostrikov, Nair and Levine, 2021, arXiv:2110.06169): offline reinforcement learning that never asks for the
value of an action that the set does not show. V is an expectile of Q over the set's actions, Q is learnt by V, and the
policy imitates the set's actions the more, the better they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rollcall.learners.algorithm import TARGET, Context, Loss, Models
from rollcall.learners.algorithms.control import samples
from rollcall.learners.algorithms.control.off_policy import replay_steps
from rollcall.learners.algorithms.control.off_policy.iql_config import DECLARED, IQLConfig
from rollcall.learners.batches.replay_batch import ReplayMinibatch, Transitions
from rollcall.learners.collators.recorded import whole
from rollcall.learners.maths import offline_losses, q_losses
from rollcall.learners.maths.categorical import Categorical
from rollcall.learners.maths.distributions import DiagonalGaussian
from rollcall.learners.update import follow


class IQL:
    """The three losses are of models that share nothing, and each gradient stops at its own: their sum, stepped by one
    Adam, is what three would do, but for the clipping of gradients."""

    Config = IQLConfig
    name = "iql"
    needs = DECLARED.needs

    def __init__(self, config: IQLConfig) -> None:
        self._config = config

    def networks(self, models: Models) -> Models:
        """Raises ValueError: for a policy with a memory, or actions that no critic values."""
        distribution = samples.actor_critic(models).distribution
        if not isinstance(distribution, DiagonalGaussian | Categorical):
            kind = type(distribution).__name__
            raise ValueError(f"iql has no form for actions of a {kind}: it needs a Box of floats, or Discrete")
        return {"critic": replay_steps.critic_for(models, algorithm=self.name)}

    def prepare(self, context: Context, batch: Transitions) -> Transitions:
        return batch

    def minibatches(self, context: Context, prepared: Transitions) -> Iterator[ReplayMinibatch]:
        yield whole(prepared)

    def loss(self, context: Context, minibatch: ReplayMinibatch) -> Loss:
        config, models = self._config, context.models
        rows, size = minibatch.transitions, minibatch.size
        actor = samples.actor_critic(models)
        with torch.no_grad():
            best = self._q_values(models, rows, name=TARGET + "critic").amin(0)
            after = _values(models, rows, after=True)
            targets = config.reward_scale * rows.rewards + rows.discounts * after
        values = _values(models, rows)
        advantages = best - values
        value_loss = offline_losses.expectile_loss(errors=advantages, expectile=config.expectile, size=size)
        q_values = self._q_values(models, rows)
        critic_loss, errors = q_losses.twin_q_loss(q_values=q_values, targets=targets, weights=rows.weights, size=size)
        weights = offline_losses.advantage_weights(
            advantages=advantages, inverse_temperature=config.inverse_temperature, largest=config.largest_weight
        )
        logprobs = actor.distribution.log_prob(actor.policy_params(rows.observations), rows.actions, rows.action_mask)
        policy_loss = -(weights * logprobs).sum() / size
        metrics = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "q_value": q_values.detach().mean(0).sum() / size,
            "td_error": errors.sum() / size,
            "advantage_weight": weights.sum() / size,
        }
        return Loss(policy_loss + value_loss + critic_loss, metrics)

    def after_step(self, context: Context) -> None:
        follow(context.models[TARGET + "critic"], context.models["critic"], rate=self._config.target_rate)

    def _q_values(self, models: Models, rows: Transitions, name: str = "critic") -> Tensor:
        """[2, B]: of the set's actions."""
        actor = samples.actor_critic(models)
        critic, seen = replay_steps.twin_critic(models, name), actor.normalised(rows.observations)
        if isinstance(actor.distribution, Categorical):
            of_all: Tensor = critic(seen)
            return of_all.gather(-1, rows.actions.expand(len(of_all), -1).unsqueeze(-1)).squeeze(-1)
        assert isinstance(actor.distribution, DiagonalGaussian), "networks refuses others"
        actions = rows.actions.tanh() if actor.distribution.squash == "tanh" else rows.actions
        values: Tensor = critic(seen, actions)
        return values


def _values(models: Models, rows: Transitions, *, after: bool = False) -> Tensor:
    """[B]: V of the states, or of those that followed."""
    shown = rows.next_observations if after else rows.observations
    values = samples.actor_critic(models).state_values(shown)
    assert values is not None, "the policy has a critic"
    return values


OFFLINE_METHOD = IQL
