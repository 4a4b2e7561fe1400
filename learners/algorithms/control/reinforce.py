"""REINFORCE (Williams, 1992) over whole episodes, with a moving-average, a learned or no baseline.
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
from rollcall.learners.maths.returns import discounted_returns, episode_starts_within, whole_episode_returns


class REINFORCEConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["reinforce"] = Field(default="reinforce", description="the algorithm")
    discount: float = Field(default=0.99, ge=0, le=1, description="weight of a reward one step later: the horizon")
    reward_to_go: bool = Field(
        default=True, description="an action is credited with what follows it only; false: with its whole episode"
    )
    baseline: Literal["none", "moving_average", "value"] = Field(
        default="moving_average", description="subtracted from returns: less variance, no bias; value: a critic's"
    )
    baseline_decay: float = Field(
        default=0.9, ge=0, lt=1, description="beta of the moving average: b <- beta * b + (1 - beta) * mean return"
    )
    value_coef: float = Field(default=0.5, ge=0, description="weight of the value loss, with baseline=value")
    entropy_coef: float = Field(default=0.0, ge=0, description="weight of the entropy bonus: keeps exploration alive")
    normalise_advantages: bool = Field(
        default=False, description="to mean 0, deviation 1 over the batch: frees the step from the reward's scale"
    )


class MovingAverage(nn.Module):
    """The moving average of the mean return. Starts at 0, as in the pseudo-code."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))


class REINFORCE:
    """The plain policy gradient supposes that the policy that acted is the policy that learns.

    The gradient is the mean over steps, where the lecture has a sum over the steps of an episode: a constant factor,
    the mean length of an episode, that leaves the scale of the gradient independent of it.
    """

    Config = REINFORCEConfig
    name = "reinforce"
    unit: Unit = "episode"
    corrects_policy_lag = False

    def __init__(self, config: REINFORCEConfig) -> None:
        self._config = config
        self.needs_critic = config.baseline == "value"

    def extra_models(self) -> Mapping[str, nn.Module]:
        return {"baseline": MovingAverage()} if self._config.baseline == "moving_average" else {}

    @torch.no_grad()
    def prepare(self, models: Models, batch: GymBatch) -> ActorCriticRows:
        """Returns less the baseline; then the moving average takes in the batch's mean return.

        In that order: a baseline that knew the batch's own actions would bias the gradient.

        Raises:
          ValueError: with baseline=value and a policy that has no critic.
        """
        network = samples.actor_critic(models)
        if self._config.baseline == "value":
            values, next_values = samples.state_values(network, batch, algorithm="reinforce with baseline=value")
        else:
            values = next_values = torch.zeros_like(batch.steps.rewards)
        to_go = discounted_returns(
            rewards=batch.steps.rewards,
            next_values=next_values,
            terminated=batch.steps.terminated,
            truncated=batch.steps.truncated,
            mask=batch.steps.mask,
            discount=self._config.discount,
        )
        ends = {"terminated": batch.steps.terminated, "truncated": batch.steps.truncated, "mask": batch.steps.mask}
        credit = to_go if self._config.reward_to_go else whole_episode_returns(returns=to_go, **ends)
        baseline = values
        if self._config.baseline == "moving_average":
            # The mean over what the baseline is subtracted from: over steps, or over episodes (by their first steps).
            counted = batch.steps.mask if self._config.reward_to_go else episode_starts_within(**ends)
            baseline = self._renew(models["baseline"], (credit * counted).sum() / counted.sum())
        advantages = (credit - baseline).masked_fill(~batch.steps.mask, 0.0)
        if self._config.normalise_advantages:
            advantages = losses.normalise_advantages(advantages=advantages, mask=batch.steps.mask.to(advantages.dtype))
        return samples.batch_rows(network, batch, ActorCriticTargets(advantages, to_go))

    def minibatches(self, prepared: ActorCriticRows, generator: torch.Generator) -> Iterator[ActorCriticMinibatch]:
        """The batch itself: a second step on it would be off-policy."""
        yield from samples.grid_minibatches(samples.shuffled_grid(prepared, 1, generator))

    def loss(self, models: Models, minibatch: ActorCriticMinibatch) -> tuple[Tensor, Metrics]:
        rows, mask, num_valid = minibatch.rows, minibatch.rows.mask, minibatch.num_valid
        now = samples.evaluate(samples.actor_critic(models), rows)
        policy_loss = losses.policy_gradient_loss(
            target_logprobs=now.logprobs, advantages=rows.targets.advantages, mask=mask, num_valid=num_valid
        )
        entropy = losses.masked_mean(now.entropy, mask=mask, num_valid=num_valid)
        total = policy_loss - self._config.entropy_coef * entropy
        metrics = {"policy_loss": policy_loss.detach(), "entropy": entropy.detach()}
        if self._config.baseline == "value":
            assert now.values is not None, "prepare refuses a policy without a critic"
            value_loss = losses.squared_value_loss(
                values=now.values, returns=rows.targets.returns, mask=mask, num_valid=num_valid
            )
            total = total + self._config.value_coef * value_loss
            metrics["value_loss"] = value_loss.detach()
        with torch.no_grad():
            log_ratio = now.logprobs - rows.steps.behaviour_logprobs  # zero, unless the policy lags
            metrics["approx_kl"] = losses.approximate_kl(log_ratio=log_ratio, mask=mask, num_valid=num_valid)
        return total, metrics

    def stops_early(self, metrics: Metrics) -> bool:
        return False

    def _renew(self, average: nn.Module, mean_return: Tensor) -> Tensor:
        """The moving average from before this batch; a mean that is not finite leaves no trace in it."""
        assert isinstance(average, MovingAverage)
        before = average.value.clone()
        renewed = torch.lerp(mean_return, before, self._config.baseline_decay)
        average.value.copy_(torch.where(renewed.isfinite(), renewed, before))
        return before


ALGORITHM = REINFORCE
