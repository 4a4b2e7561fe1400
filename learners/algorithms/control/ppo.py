"""PPO (Schulman et al., 2017, arXiv:1707.06347): several epochs of updates on one batch, each held near the policy
before it by a clipped ratio, or by a penalty on the KL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Metrics, Models
from rollcall.learners.algorithms.control import actor_critic, samples
from rollcall.learners.algorithms.control.actor_critic import credit
from rollcall.learners.algorithms.control.ppo_config import DECLARED, PPOConfig, PPOSettings
from rollcall.learners.algorithms.control.samples import (
    ActorCriticMinibatch,
    ActorCriticRows,
    ActorCriticTargets,
    StepGrid,
)
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.maths import losses
from rollcall.learners.maths.returns import gae
from rollcall.learners.maths.trust_region import adapted_coefficient
from rollcall.learners.models.networks import ActorCritic
from rollcall.learners.update import Stepper, minibatch_steps

KL_PENALTY = "kl_penalty"  # the model that holds an adaptive coefficient
_REACH = 1000.0  # how many times the first coefficient an adaptive one may be, or the first it: it comes back in time


class KLCoefficient(nn.Module):
    """An adaptive penalty's weight: learnt from one batch for the next, so a checkpoint keeps it."""

    value: Tensor

    def __init__(self, first: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(first))


class PPO:
    """The behaviour log-probabilities are the ratio's denominator, so experience of an older version stays sound."""

    Config = PPOConfig
    name = "ppo"
    unit: Unit = "fragment"
    needs = DECLARED.needs

    def __init__(self, config: PPOSettings) -> None:
        self._config = config
        self._penalty = config.kl_penalty
        self._clips = self._penalty is None or self._penalty.clip
        high = config.clip_range if config.clip_range_high is None else config.clip_range_high
        self._clip_low, self._clip_high = config.clip_range, high

    def extra_models(self) -> Models:
        penalty = self._penalty
        return {} if penalty is None or penalty.target is None else {KL_PENALTY: KLCoefficient(penalty.coef)}

    def check_models(self, models: Models) -> None:
        if self._penalty is not None:
            actor_critic.check_kl(models, what="a KL penalty")

    @torch.no_grad()
    def prepare(self, context: Context, batch: GymBatch) -> ActorCriticRows:
        """Advantages and returns, with the critic from before the batch's first update.

        Raises:
          ValueError: when the policy has no critic.
        """
        config, network = self._config, samples.actor_critic(context.models)
        old_params = None
        if self._penalty is None:
            values, next_values = samples.state_values(network, batch, algorithm=self.name)
        else:
            _, values, next_values, old_params = samples.assess(network, batch, algorithm=self.name)
        advantages, returns = gae(
            values=values, next_values=next_values, discount=config.discount, lam=config.gae_lambda, **credit(batch)
        )
        actor_critic.note_critic(context, batch, values=values, returns=returns)
        advantages = actor_critic.over_batch(advantages, batch, normalise=config.normalise_advantages == "batch")
        before = values if config.value_loss == "clipped" else None
        return samples.batch_rows(network, batch, ActorCriticTargets(advantages, returns, before, old_params))

    def epochs(self, context: Context, prepared: ActorCriticRows) -> Iterator[StepGrid[ActorCriticTargets]]:
        for _ in range(self._config.epochs):
            grid = samples.shuffled_grid(prepared, self._config.num_minibatches, context.generator)
            yield replace(grid, rows=self.normalised(grid.rows))

    def minibatches(self, context: Context, prepared: ActorCriticRows) -> Iterator[ActorCriticMinibatch]:
        return (minibatch for epoch in self.epochs(context, prepared) for minibatch in epoch.minibatches())

    def normalised(self, grid: ActorCriticRows) -> ActorCriticRows:
        """The rows of a grid with the advantages of each minibatch by its own moments, where the settings say so. Here
        and not in the loss: the moments are the whole minibatch's, and processes share it later."""
        if self._config.normalise_advantages != "minibatch":
            return grid
        advantages = losses.normalise_advantages(
            advantages=grid.targets.advantages, mask=grid.mask, dims=range(1, grid.mask.dim())
        )
        return replace(grid, targets=replace(grid.targets, advantages=advantages))

    def loss(self, context: Context, minibatch: ActorCriticMinibatch) -> Loss:
        rows, over = minibatch.rows, {"mask": minibatch.rows.mask, "num_valid": minibatch.num_valid}
        network = samples.actor_critic(context.models)
        now = samples.evaluate(network, rows)
        log_ratio = now.logprobs - rows.steps.behaviour_logprobs
        ratio = log_ratio.exp()
        low, high = self._clip_low, self._clip_high
        metrics: Metrics = {}
        penalty: Tensor | None = None
        if self._clips:
            surrogate, _ = losses.clipped_surrogate(
                ratio=ratio, advantages=rows.targets.advantages, clip_low=low, clip_high=high
            )
            metrics["clip_fraction"] = losses.clip_fraction(ratio=ratio.detach(), clip_low=low, clip_high=high, **over)
        else:
            surrogate = -ratio * rows.targets.advantages
        if self._penalty is not None:
            penalty = self._coefficient(context) * self._mean_kl(minibatch, now.params, network)
        return actor_critic.joined(
            now,
            minibatch,
            policy_loss=losses.masked_mean(surrogate, **over),
            log_ratio=log_ratio,
            value_loss=self._value_loss(now, minibatch),
            value_coef=self._config.value_coef,
            entropy_coef=self._config.entropy_coef,
            penalty=penalty,
            **metrics,
        )

    def update(self, context: Context, prepared: ActorCriticRows, stepper: Stepper) -> Metrics:
        """The optimiser's steps; then the KL that they made, and what it makes of an adaptive penalty."""
        metrics = minibatch_steps(self, context, prepared, stepper)
        return {**metrics, **self.adapt(context, prepared, stepper)}

    def adapt(self, context: Context, rows: ActorCriticRows, stepper: Stepper) -> Metrics:
        """After a batch's steps. Nothing without a penalty."""
        if self._penalty is None:
            return {}
        (whole,) = samples.shuffled_grid(rows, 1, context.generator).minibatches()
        kl, coef = stepper.loss(whole, self._kl_loss).loss, self._coefficient(context)
        metrics = {"kl_old": kl, "kl_coef": torch.zeros_like(kl) + coef}
        if isinstance(coef, Tensor) and self._penalty.target is not None:
            first = self._penalty.coef
            adapted = adapted_coefficient(coef=coef, kl=kl + 0.0 * stepper.broken, target=self._penalty.target)
            coef.copy_(adapted.clamp(first / _REACH, first * _REACH))
        return metrics

    def _kl_loss(self, context: Context, minibatch: ActorCriticMinibatch) -> Loss:
        network = samples.actor_critic(context.models)
        now = samples.evaluate(network, minibatch.rows)
        return Loss(self._mean_kl(minibatch, now.params, network), {})

    @staticmethod
    def _mean_kl(minibatch: ActorCriticMinibatch, params: Tensor, network: ActorCritic) -> Tensor:
        """KL(before || now)."""
        rows = minibatch.rows
        assert rows.targets.old_params is not None, "prepare has them where there is a penalty"
        kl = actor_critic.kl(network, rows.targets.old_params, params, rows.steps)
        return losses.masked_mean(kl, mask=rows.mask, num_valid=minibatch.num_valid)

    def _coefficient(self, context: Context) -> Tensor | float:
        assert self._penalty is not None
        if self._penalty.target is None:
            return self._penalty.coef
        model = context.models[KL_PENALTY]
        assert isinstance(model, KLCoefficient)
        return model.value

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
