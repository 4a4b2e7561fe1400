"""RND (Burda et al., 2018, arXiv:1810.12894): PPO that is paid for what is new to it beside what the env pays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Metrics, Models
from rollcall.learners.algorithms.control import samples
from rollcall.learners.algorithms.control.ppo import PPO
from rollcall.learners.algorithms.control.rnd_config import DECLARED, RND_NETWORKS, RNDConfig
from rollcall.learners.algorithms.control.samples import ActorCriticTargets, StepGrid, StepMinibatch, StepRows
from rollcall.learners.batches.gym_batch import GymBatch, next_observations
from rollcall.learners.maths import losses
from rollcall.learners.maths.returns import endless_gae
from rollcall.learners.models.distillation import RandomNetworkDistillation
from rollcall.learners.update import Stepper, minibatch_steps


@dataclass(frozen=True)
class RNDTargets:
    policy: ActorCriticTargets  # advantages: by both rewards; returns: of the env's
    intrinsic_returns: Tensor
    following: Mapping[str, Tensor]  # the observation after the step
    predicted: Tensor  # 1.0 where the predictor learns from it


RNDRows = StepRows[RNDTargets]
RNDMinibatch = StepMinibatch[RNDTargets]


class RND:
    """Two critics, since the two returns end differently: the env's with an episode, novelty's never. Novelty's critic
    is a network of its own, where the paper has a second head. A step is paid for the observation that it leads to."""

    Config = RNDConfig
    name = "rnd"
    unit: Unit = "fragment"
    needs = DECLARED.needs

    def __init__(self, config: RNDConfig) -> None:
        self._config = config
        self._ppo = PPO(config)

    def extra_models(self) -> Models:
        return self._ppo.extra_models()

    def check_models(self, models: Models) -> None:
        self._ppo.check_models(models)

    def networks(self, models: Models) -> Models:
        policy = samples.actor_critic(models)
        return {RND_NETWORKS: RandomNetworkDistillation(policy.observation_spaces, policy.config.hidden_sizes)}

    @torch.no_grad()
    def prepare(self, context: Context, batch: GymBatch) -> RNDRows:
        """Both rewards' advantages and returns, each with its critic from before the batch's first update.

        Raises:
          ValueError: when the policy has no critic.
        """
        config, own, mask = self._config, _networks(context), batch.steps.mask
        of_policy = self._ppo.prepare(context, batch)
        following = next_observations(batch)
        own.take_in(following, mask)
        errors = own.error(following)
        rewards = own.rewards(errors, discount=config.intrinsic_discount, mask=mask)
        advantages, returns = endless_gae(
            rewards=rewards,
            values=own.values(batch.steps.observations),
            last_values=own.values(batch.last_observations),
            discount=config.intrinsic_discount,
            lam=config.gae_lambda,
            mask=mask,
        )
        count = mask.sum()
        context.noted["intrinsic_reward"] = (rewards * mask).sum() / count
        context.noted["prediction_error"] = (errors * mask).sum() / count
        novel = samples.batch_rows(
            samples.actor_critic(context.models), batch, _Novelty(advantages, returns, following)
        ).targets
        both = config.extrinsic_coef * of_policy.targets.advantages + config.intrinsic_coef * novel.advantages
        targets = RNDTargets(
            policy=replace(of_policy.targets, advantages=both),
            intrinsic_returns=novel.returns,
            following=novel.following,
            predicted=of_policy.mask,
        )
        return StepRows(of_policy.steps, targets, of_policy.initial_state)

    def epochs(self, context: Context, prepared: RNDRows) -> Iterator[StepGrid[RNDTargets]]:
        share = self._config.predictor_share
        for _ in range(self._config.epochs):
            grid = samples.shuffled_grid(prepared, self._config.num_minibatches, context.generator)
            rows = grid.rows
            drawn = torch.rand(rows.mask.shape, generator=context.generator, device=context.generator.device)
            policy = self._ppo.normalised(_of_policy(rows)).targets
            # Weighted so that the predictor's loss has the mean of that over all steps.
            predicted = rows.mask * (drawn.to(rows.mask.device) < share) / share
            yield replace(grid, rows=replace(rows, targets=replace(rows.targets, policy=policy, predicted=predicted)))

    def minibatches(self, context: Context, prepared: RNDRows) -> Iterator[RNDMinibatch]:
        return (minibatch for epoch in self.epochs(context, prepared) for minibatch in epoch.minibatches())

    def loss(self, context: Context, minibatch: RNDMinibatch) -> Loss:
        rows, num_valid, own = minibatch.rows, minibatch.num_valid, _networks(context)
        of_policy = self._ppo.loss(context, StepMinibatch(_of_policy(rows), num_valid, minibatch.ends_epoch))
        value_loss = losses.squared_value_loss(
            values=own.values(rows.steps.observations),
            returns=rows.targets.intrinsic_returns,
            mask=rows.mask,
            num_valid=num_valid,
        )
        predictor_loss = losses.masked_mean(
            own.error(rows.targets.following), mask=rows.targets.predicted, num_valid=num_valid
        )
        metrics = {"intrinsic_value_loss": value_loss.detach(), "predictor_loss": predictor_loss.detach()}
        total = of_policy.loss + self._config.value_coef * value_loss + predictor_loss
        return Loss(total, {**of_policy.metrics, **metrics})

    def update(self, context: Context, prepared: RNDRows, stepper: Stepper) -> Metrics:
        metrics = minibatch_steps(self, context, prepared, stepper)
        return {**metrics, **self._ppo.adapt(context, _of_policy(prepared), stepper)}

    def stops_early(self, metrics: Metrics) -> bool:
        return self._ppo.stops_early(metrics)


@dataclass(frozen=True)
class _Novelty:
    advantages: Tensor
    returns: Tensor
    following: Mapping[str, Tensor]


def _networks(context: Context) -> RandomNetworkDistillation:
    networks = context.models[RND_NETWORKS]
    assert isinstance(networks, RandomNetworkDistillation)
    return networks


def _of_policy(rows: RNDRows) -> StepRows[ActorCriticTargets]:
    """As PPO has them."""
    return StepRows(rows.steps, rows.targets.policy, rows.initial_state)


ALGORITHM = RND
