"""A2C: the synchronous form of A3C (Mnih et al., 2016, arXiv:1602.01783), one policy-gradient step per batch.
This file must never know where batches come from, nor what steps the optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Metrics, Models
from rollcall.learners.batches import samples
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.batches.samples import ActorCriticMinibatch, ActorCriticRows, ActorCriticTargets
from rollcall.learners.maths import losses
from rollcall.learners.maths.returns import gae, n_step_returns


class A2CConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["a2c"] = Field(default="a2c", description="the algorithm")
    discount: float = Field(default=0.99, ge=0, le=1, description="weight of a reward one step later: the horizon")
    gae_lambda: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="1: the return to the fragment's end (A3C's); lower: less variance, more bias",
    )
    n_step: int | None = Field(
        default=None, ge=1, description="steps of reward before the critic's value, in place of gae_lambda's mixture"
    )
    value_coef: float = Field(
        default=0.5, ge=0, description="weight of the value loss: actor and critic share a trunk, or a gradient clip"
    )
    entropy_coef: float = Field(default=0.01, ge=0, description="weight of the entropy bonus: keeps exploration alive")
    normalise_advantages: bool = Field(
        default=False, description="to mean 0, deviation 1 over the batch: frees the step from the reward's scale"
    )


class A2C:
    """The plain policy gradient supposes that the policy that acted is the policy that learns."""

    Config = A2CConfig
    name = "a2c"
    unit: Unit = "fragment"
    corrects_policy_lag = False
    needs_critic = True

    def __init__(self, config: A2CConfig) -> None:
        self._config = config

    def extra_models(self) -> Mapping[str, nn.Module]:
        return {}

    @torch.no_grad()
    def prepare(self, models: Models, batch: GymBatch) -> ActorCriticRows:
        """Advantages and returns with the present critic.

        Raises:
          ValueError: when the policy has no critic.
        """
        network = samples.actor_critic(models)
        values, next_values = samples.state_values(network, batch, algorithm=self.name)
        advantages, returns = self._advantages(batch, values, next_values)
        if self._config.normalise_advantages:
            advantages = losses.normalise_advantages(advantages=advantages, mask=batch.steps.mask.to(advantages.dtype))
        return samples.batch_rows(network, batch, ActorCriticTargets(advantages, returns))

    def minibatches(self, prepared: ActorCriticRows, generator: torch.Generator) -> Iterator[ActorCriticMinibatch]:
        """The batch itself: a second step on it would be off-policy."""
        yield from samples.grid_minibatches(samples.shuffled_grid(prepared, 1, generator))

    def loss(self, models: Models, minibatch: ActorCriticMinibatch) -> tuple[Tensor, Metrics]:
        rows, mask, num_valid = minibatch.rows, minibatch.rows.mask, minibatch.num_valid
        now = samples.evaluate(samples.actor_critic(models), rows)
        assert now.values is not None, "prepare refuses a policy without a critic"
        policy_loss = losses.policy_gradient_loss(
            target_logprobs=now.logprobs, advantages=rows.targets.advantages, mask=mask, num_valid=num_valid
        )
        value_loss = losses.squared_value_loss(
            values=now.values, returns=rows.targets.returns, mask=mask, num_valid=num_valid
        )
        entropy = losses.masked_mean(now.entropy, mask=mask, num_valid=num_valid)
        total = policy_loss + self._config.value_coef * value_loss - self._config.entropy_coef * entropy
        with torch.no_grad():
            log_ratio = now.logprobs - rows.steps.behaviour_logprobs  # zero, unless the policy lags
            approx_kl = losses.approximate_kl(log_ratio=log_ratio, mask=mask, num_valid=num_valid)
        return total, {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "approx_kl": approx_kl,
        }

    def stops_early(self, metrics: Metrics) -> bool:
        return False

    def _advantages(self, batch: GymBatch, values: Tensor, next_values: Tensor) -> tuple[Tensor, Tensor]:
        if self._config.n_step is None:
            return gae(
                rewards=batch.steps.rewards,
                values=values,
                next_values=next_values,
                terminated=batch.steps.terminated,
                truncated=batch.steps.truncated,
                mask=batch.steps.mask,
                discount=self._config.discount,
                lam=self._config.gae_lambda,
            )
        returns = n_step_returns(
            rewards=batch.steps.rewards,
            next_values=next_values,
            terminated=batch.steps.terminated,
            truncated=batch.steps.truncated,
            mask=batch.steps.mask,
            discount=self._config.discount,
            n=self._config.n_step,
        )
        return (returns - values).masked_fill(~batch.steps.mask, 0.0), returns


ALGORITHM = A2C
