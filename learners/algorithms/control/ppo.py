"""PPO (Schulman et al., 2017, arXiv:1707.06347): several epochs of clipped updates on one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Metrics, Needs
from rollcall.learners.algorithms.control import actor_critic, samples
from rollcall.learners.algorithms.control.actor_critic import (
    Discount,
    EntropyCoef,
    NumMinibatches,
    ValueCoef,
    credit,
)
from rollcall.learners.algorithms.control.samples import ActorCriticMinibatch, ActorCriticRows, ActorCriticTargets
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.maths import losses
from rollcall.learners.maths.returns import gae


class PPOConfig(BaseModel):
    """The details that PPO is known to hang on, each with its reason. Learning rate, its annealing and the gradient
    clip are the learner's; normalisation of observations and rewards is the policy's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["ppo"] = Field(default="ppo", description="the algorithm")
    discount: Discount = 0.99
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="lower: less variance, more of the critic's bias")
    epochs: int = Field(default=4, ge=1, description="passes over a batch: more is learnt from it, and drifts further")
    num_minibatches: NumMinibatches = 4
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
    value_coef: ValueCoef = 0.5
    entropy_coef: EntropyCoef = 0.0
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
    needs = Needs(critic=True, corrects_policy_lag=True)

    def __init__(self, config: PPOConfig) -> None:
        self._config = config
        high = config.clip_range if config.clip_range_high is None else config.clip_range_high
        self._clip_low, self._clip_high = config.clip_range, high

    @torch.no_grad()
    def prepare(self, context: Context, batch: GymBatch) -> ActorCriticRows:
        """Advantages and returns, with the critic from before the batch's first update.

        Raises:
          ValueError: when the policy has no critic.
        """
        config, network = self._config, samples.actor_critic(context.models)
        values, next_values = samples.state_values(network, batch, algorithm=self.name)
        advantages, returns = gae(
            values=values, next_values=next_values, discount=config.discount, lam=config.gae_lambda, **credit(batch)
        )
        advantages = actor_critic.over_batch(advantages, batch, normalise=config.normalise_advantages == "batch")
        before = values if config.value_loss == "clipped" else None
        return samples.batch_rows(network, batch, ActorCriticTargets(advantages, returns, before))

    def minibatches(self, context: Context, prepared: ActorCriticRows) -> Iterator[ActorCriticMinibatch]:
        for _ in range(self._config.epochs):
            grid = samples.shuffled_grid(prepared, self._config.num_minibatches, context.generator)
            if self._config.normalise_advantages == "minibatch":
                # Here and not in the loss: the moments are the whole minibatch's, and processes share it later.
                advantages = losses.normalise_advantages(
                    advantages=grid.targets.advantages, mask=grid.mask, dims=range(1, grid.mask.dim())
                )
                grid = replace(grid, targets=replace(grid.targets, advantages=advantages))
            yield from samples.grid_minibatches(grid)

    def loss(self, context: Context, minibatch: ActorCriticMinibatch) -> Loss:
        rows, over = minibatch.rows, {"mask": minibatch.rows.mask, "num_valid": minibatch.num_valid}
        now = samples.evaluate(samples.actor_critic(context.models), rows)
        log_ratio = now.logprobs - rows.steps.behaviour_logprobs
        ratio = log_ratio.exp()
        low, high = self._clip_low, self._clip_high
        surrogate, _ = losses.clipped_surrogate(
            ratio=ratio, advantages=rows.targets.advantages, clip_low=low, clip_high=high
        )
        return actor_critic.joined(
            now,
            minibatch,
            policy_loss=losses.masked_mean(surrogate, **over),
            log_ratio=log_ratio,
            value_loss=self._value_loss(now, minibatch),
            value_coef=self._config.value_coef,
            entropy_coef=self._config.entropy_coef,
            clip_fraction=losses.clip_fraction(ratio=ratio.detach(), clip_low=low, clip_high=high, **over),
        )

    def stops_early(self, metrics: Metrics) -> bool:
        return self._config.target_kl is not None and float(metrics["approx_kl"]) > self._config.target_kl

    def _value_loss(self, now: samples.Evaluation, minibatch: ActorCriticMinibatch) -> Tensor:
        config, rows = self._config, minibatch.rows
        over = {"mask": rows.mask, "num_valid": minibatch.num_valid}
        assert now.values is not None, "prepare refuses a policy without a critic"
        values, returns = now.values, rows.targets.returns
        if config.value_loss == "mse":
            return losses.squared_value_loss(values=values, returns=returns, **over)
        if config.value_loss == "huber":
            return losses.huber_value_loss(values=values, returns=returns, delta=config.value_huber_delta, **over)
        before, clip_range = rows.targets.behaviour_values, config.value_clip_range
        assert before is not None
        return losses.clipped_value_loss(
            values=values, behaviour_values=before, returns=returns, clip_range=clip_range, **over
        )


ALGORITHM = PPO
