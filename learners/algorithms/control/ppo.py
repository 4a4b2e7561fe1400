"""PPO (Schulman et al., 2017, arXiv:1707.06347): several epochs of clipped updates on one batch.
This file must never know where batches come from, nor what steps the optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
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
from rollcall.learners.maths.returns import gae


class PPOConfig(BaseModel):
    """The details that PPO is known to hang on, each with its reason. Learning rate, its annealing and the gradient
    clip are the learner's; normalisation of observations and rewards is the policy's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["ppo"] = Field(default="ppo", description="the algorithm")
    discount: float = Field(default=0.99, ge=0, le=1, description="weight of a reward one step later: the horizon")
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="lower: less variance, more of the critic's bias")
    epochs: int = Field(default=4, ge=1, description="passes over a batch: more is learnt from it, and drifts further")
    num_minibatches: int = Field(
        default=4, ge=1, description="gradient steps per pass; a recurrent policy's minibatch is whole env columns"
    )
    clip_range: float = Field(
        default=0.2, gt=0, lt=1, description="how far a ratio may leave 1 before its gradient ends: bounds the update"
    )
    clip_range_high: float | None = Field(
        default=None,
        gt=0,
        description="the upper bound apart (None: clip_range): a higher one keeps rare actions alive",
    )
    value_loss: Literal["mse", "clipped", "huber"] = Field(
        default="mse", description="clipped: the critic may not leap either; huber: outliers among returns weigh less"
    )
    value_clip_range: float = Field(
        default=0.2, gt=0, description="for value_loss=clipped, in units of returns: it supposes normalised rewards"
    )
    value_huber_delta: float = Field(
        default=1.0, gt=0, description="for value_loss=huber, in units of returns: the error beyond which it is linear"
    )
    value_coef: float = Field(
        default=0.5, ge=0, description="weight of the value loss: actor and critic share a trunk, or a gradient clip"
    )
    entropy_coef: float = Field(default=0.0, ge=0, description="weight of the entropy bonus: keeps exploration alive")
    normalise_advantages: Literal["minibatch", "batch", "none"] = Field(
        default="minibatch",
        description="to mean 0, deviation 1 over these steps: frees the step from the reward's scale",
    )
    target_kl: float | None = Field(
        default=None, gt=0, description="an epoch whose approx_kl exceeds it is the batch's last: a leash on the epochs"
    )


class PPO:
    """The behaviour log-probabilities are the ratio's denominator, so experience of an older version stays sound."""

    Config = PPOConfig
    name = "ppo"
    unit: Unit = "fragment"
    corrects_policy_lag = True
    needs_critic = True

    def __init__(self, config: PPOConfig) -> None:
        self._config = config
        self._clip_low = config.clip_range
        self._clip_high = config.clip_range if config.clip_range_high is None else config.clip_range_high

    def extra_models(self) -> Mapping[str, nn.Module]:
        return {}

    @torch.no_grad()
    def prepare(self, models: Models, batch: GymBatch) -> ActorCriticRows:
        """Advantages and returns, with the critic from before the batch's first update.

        Raises:
          ValueError: when the policy has no critic.
        """
        network = samples.actor_critic(models)
        values, next_values = samples.state_values(network, batch, algorithm=self.name)
        advantages, returns = gae(
            rewards=batch.steps.rewards,
            values=values,
            next_values=next_values,
            terminated=batch.steps.terminated,
            truncated=batch.steps.truncated,
            mask=batch.steps.mask,
            discount=self._config.discount,
            lam=self._config.gae_lambda,
        )
        if self._config.normalise_advantages == "batch":
            advantages = losses.normalise_advantages(advantages=advantages, mask=batch.steps.mask.to(advantages.dtype))
        clipped = self._config.value_loss == "clipped"
        return samples.batch_rows(network, batch, ActorCriticTargets(advantages, returns, values if clipped else None))

    def minibatches(self, prepared: ActorCriticRows, generator: torch.Generator) -> Iterator[ActorCriticMinibatch]:
        for _ in range(self._config.epochs):
            grid = samples.shuffled_grid(prepared, self._config.num_minibatches, generator)
            if self._config.normalise_advantages == "minibatch":
                # Here and not in the loss: the moments are the whole minibatch's, and processes share it later.
                advantages = losses.normalise_advantages(
                    advantages=grid.targets.advantages, mask=grid.mask, dims=range(1, grid.mask.dim())
                )
                grid = replace(grid, targets=replace(grid.targets, advantages=advantages))
            yield from samples.grid_minibatches(grid)

    def loss(self, models: Models, minibatch: ActorCriticMinibatch) -> tuple[Tensor, Metrics]:
        rows, mask, num_valid = minibatch.rows, minibatch.rows.mask, minibatch.num_valid
        now = samples.evaluate(samples.actor_critic(models), rows)
        log_ratio = now.logprobs - rows.steps.behaviour_logprobs
        ratio = log_ratio.exp()
        policy_loss = losses.clipped_surrogate_loss(
            ratio=ratio,
            advantages=rows.targets.advantages,
            clip_low=self._clip_low,
            clip_high=self._clip_high,
            mask=mask,
            num_valid=num_valid,
        )
        value_loss = self._value_loss(now, minibatch)
        entropy = losses.masked_mean(now.entropy, mask=mask, num_valid=num_valid)
        total = policy_loss + self._config.value_coef * value_loss
        if self._config.entropy_coef:
            total = total - self._config.entropy_coef * entropy
        with torch.no_grad():
            approx_kl = losses.approximate_kl(log_ratio=log_ratio, mask=mask, num_valid=num_valid)
            clip_fraction = losses.clip_fraction(
                ratio=ratio, clip_low=self._clip_low, clip_high=self._clip_high, mask=mask, num_valid=num_valid
            )
        return total, {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "approx_kl": approx_kl,
            "clip_fraction": clip_fraction,
        }

    def stops_early(self, metrics: Metrics) -> bool:
        return self._config.target_kl is not None and float(metrics["approx_kl"]) > self._config.target_kl

    def _value_loss(self, now: samples.Evaluation, minibatch: ActorCriticMinibatch) -> Tensor:
        rows, mask, num_valid = minibatch.rows, minibatch.rows.mask, minibatch.num_valid
        assert now.values is not None, "prepare refuses a policy without a critic"
        if self._config.value_loss == "mse":
            return losses.squared_value_loss(
                values=now.values, returns=rows.targets.returns, mask=mask, num_valid=num_valid
            )
        if self._config.value_loss == "huber":
            return losses.huber_value_loss(
                values=now.values,
                returns=rows.targets.returns,
                delta=self._config.value_huber_delta,
                mask=mask,
                num_valid=num_valid,
            )
        assert rows.targets.behaviour_values is not None
        return losses.clipped_value_loss(
            values=now.values,
            behaviour_values=rows.targets.behaviour_values,
            returns=rows.targets.returns,
            clip_range=self._config.value_clip_range,
            mask=mask,
            num_valid=num_valid,
        )


ALGORITHM = PPO
