"""REINFORCE (Williams, 1992) over whole episodes, with a moving-average, a learned or no baseline."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Models
from rollcall.learners.algorithms.control import actor_critic, samples
from rollcall.learners.algorithms.control.actor_critic import credit
from rollcall.learners.algorithms.control.reinforce_config import DECLARED, REINFORCEConfig
from rollcall.learners.algorithms.control.samples import ActorCriticMinibatch, ActorCriticRows, ActorCriticTargets
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.declared import Needs
from rollcall.learners.maths import losses
from rollcall.learners.maths.returns import discounted_returns, episode_starts_within, whole_episode_returns


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
    needs = DECLARED.needs

    def __init__(self, config: REINFORCEConfig) -> None:
        self._config = config
        self.needs = Needs(critic=config.baseline == "value")

    def extra_models(self) -> Models:
        return {"baseline": MovingAverage()} if self._config.baseline == "moving_average" else {}

    @torch.no_grad()
    def prepare(self, context: Context, batch: GymBatch) -> ActorCriticRows:
        """Returns less the baseline; then the moving average takes in the batch's mean return.

        In that order: a baseline that knew the batch's own actions would bias the gradient.

        Raises:
          ValueError: with baseline=value and a policy that has no critic.
        """
        config, network = self._config, samples.actor_critic(context.models)
        if config.baseline == "value":
            values, next_values = samples.state_values(network, batch, algorithm="reinforce with baseline=value")
        else:
            values = next_values = torch.zeros_like(batch.steps.rewards)
        to_go = discounted_returns(next_values=next_values, discount=config.discount, **credit(batch))
        ends = {"terminated": batch.steps.terminated, "truncated": batch.steps.truncated, "mask": batch.steps.mask}
        returns = to_go if config.reward_to_go else whole_episode_returns(returns=to_go, **ends)
        baseline = values
        if config.baseline == "moving_average":
            # The mean over what the baseline is subtracted from: over steps, or over episodes (by their first steps).
            counted = batch.steps.mask if config.reward_to_go else episode_starts_within(**ends)
            baseline = self._renew(context.models["baseline"], (returns * counted).sum() / counted.sum())
        elif config.baseline == "value":
            actor_critic.note_critic(context, batch, values=values, returns=to_go)
        advantages = (returns - baseline).masked_fill(~batch.steps.mask, 0.0)
        advantages = actor_critic.over_batch(advantages, batch, normalise=config.normalise_advantages)
        return samples.batch_rows(network, batch, ActorCriticTargets(advantages, returns=to_go))

    def minibatches(self, context: Context, prepared: ActorCriticRows) -> Iterator[ActorCriticMinibatch]:
        return actor_critic.minibatches(context, prepared)

    def loss(self, context: Context, minibatch: ActorCriticMinibatch) -> Loss:
        rows, over = minibatch.rows, {"mask": minibatch.rows.mask, "num_valid": minibatch.num_valid}
        now = samples.evaluate(samples.actor_critic(context.models), rows)
        value_loss = None
        if self._config.baseline == "value":
            assert now.values is not None, "prepare refuses a policy without a critic"
            value_loss = losses.squared_value_loss(values=now.values, returns=rows.targets.returns, **over)
        return actor_critic.joined(
            now,
            minibatch,
            policy_loss=losses.policy_gradient_loss(
                target_logprobs=now.logprobs, advantages=rows.targets.advantages, **over
            ),
            log_ratio=now.logprobs - rows.steps.behaviour_logprobs,
            value_loss=value_loss,
            value_coef=self._config.value_coef,
            entropy_coef=self._config.entropy_coef,
        )

    def _renew(self, average: nn.Module, mean_return: Tensor) -> Tensor:
        """The moving average from before this batch; a mean that is not finite leaves no trace in it."""
        assert isinstance(average, MovingAverage)
        before = average.value.clone()
        renewed = torch.lerp(mean_return, before, self._config.baseline_decay)
        average.value.copy_(torch.where(renewed.isfinite(), renewed, before))
        return before


ALGORITHM = REINFORCE
