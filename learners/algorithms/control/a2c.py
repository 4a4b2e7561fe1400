"""A2C: the synchronous form of A3C (Mnih et al., 2016, arXiv:1602.01783), one policy-gradient step per batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss
from rollcall.learners.algorithms.control import actor_critic, samples
from rollcall.learners.algorithms.control.a2c_config import DECLARED, A2CConfig
from rollcall.learners.algorithms.control.actor_critic import credit
from rollcall.learners.algorithms.control.samples import ActorCriticMinibatch, ActorCriticRows, ActorCriticTargets
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.maths import losses
from rollcall.learners.maths.returns import gae, n_step_returns


class A2C:
    """The plain policy gradient supposes that the policy that acted is the policy that learns."""

    Config = A2CConfig
    name = "a2c"
    unit: Unit = "fragment"
    needs = DECLARED.needs

    def __init__(self, config: A2CConfig) -> None:
        self._config = config

    @torch.no_grad()
    def prepare(self, context: Context, batch: GymBatch) -> ActorCriticRows:
        """Advantages and returns with the present critic.

        Raises:
          ValueError: when the policy has no critic.
        """
        network = samples.actor_critic(context.models)
        values, next_values = samples.state_values(network, batch, algorithm=self.name)
        advantages, returns = self._advantages(batch, values, next_values)
        actor_critic.note_critic(context, batch, values=values, returns=returns)
        advantages = actor_critic.over_batch(advantages, batch, normalise=self._config.normalise_advantages)
        return samples.batch_rows(network, batch, ActorCriticTargets(advantages, returns))

    def minibatches(self, context: Context, prepared: ActorCriticRows) -> Iterator[ActorCriticMinibatch]:
        return actor_critic.minibatches(context, prepared)

    def loss(self, context: Context, minibatch: ActorCriticMinibatch) -> Loss:
        rows, over = minibatch.rows, {"mask": minibatch.rows.mask, "num_valid": minibatch.num_valid}
        now = samples.evaluate(samples.actor_critic(context.models), rows)
        assert now.values is not None, "prepare refuses a policy without a critic"
        return actor_critic.joined(
            now,
            minibatch,
            policy_loss=losses.policy_gradient_loss(
                target_logprobs=now.logprobs, advantages=rows.targets.advantages, **over
            ),
            log_ratio=now.logprobs - rows.steps.behaviour_logprobs,
            value_loss=losses.squared_value_loss(values=now.values, returns=rows.targets.returns, **over),
            value_coef=self._config.value_coef,
            entropy_coef=self._config.entropy_coef,
        )

    def _advantages(self, batch: GymBatch, values: Tensor, next_values: Tensor) -> tuple[Tensor, Tensor]:
        discount, n, lam = self._config.discount, self._config.n_step, self._config.gae_lambda
        if n is None:
            return gae(values=values, next_values=next_values, discount=discount, lam=lam, **credit(batch))
        returns = n_step_returns(next_values=next_values, discount=discount, n=n, **credit(batch))
        return (returns - values).masked_fill(~batch.steps.mask, 0.0), returns


ALGORITHM = A2C
