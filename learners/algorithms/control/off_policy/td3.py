"""TD3 (Fujimoto et al., 2018, arXiv:1802.09477): a deterministic actor, twin critics whose targets are smoothed over
actions, and an actor that is stepped less often than they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import TARGET, Context, Loss, Metrics, Models
from rollcall.learners.algorithms.control import samples
from rollcall.learners.algorithms.control.off_policy import replay_steps
from rollcall.learners.algorithms.control.off_policy.replay_steps import NoisyMinibatch, NoisyPart
from rollcall.learners.algorithms.control.off_policy.td3_config import DECLARED, TD3Config
from rollcall.learners.batches.replay_batch import ReplayBatch, Transitions
from rollcall.learners.maths import q_losses
from rollcall.learners.maths.distributions import DiagonalGaussian
from rollcall.learners.maths.noisy_actions import NoisyActions
from rollcall.learners.models.networks import ActorCritic
from rollcall.learners.update import Stepper, follow


class StepCount(nn.Module):
    """Of gradient steps: whose turn the actor's is."""

    value: Tensor  # int64 []

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros((), dtype=torch.int64))


class TD3:
    """The actor's gradient is taken at the same parameters as the critics', and both step together; the paper's code
    steps the critics first. The published policy is the actor alone."""

    Config = TD3Config
    name = "td3"
    unit: Unit = "fragment"
    needs = DECLARED.needs

    def __init__(self, config: TD3Config) -> None:
        self._config = config

    def networks(self, models: Models) -> Models:
        """Raises ValueError where the policy is not a deterministic one."""
        actor = samples.actor_critic(models)
        if not isinstance(actor.distribution, NoisyActions | DiagonalGaussian):
            raise ValueError(f"td3 needs continuous actions, a Box of floats: not {type(actor.distribution).__name__}")
        if not isinstance(actor.distribution, NoisyActions):
            raise ValueError("exploration_noise=None: td3's policy is deterministic: set policy.exploration_noise=0.1")
        return {"critic": replay_steps.critic_for(models, algorithm=self.name), "step_count": StepCount()}

    def learning_rates(self) -> Mapping[str, float | None]:
        return {"actor_critic": None, "critic": self._config.critic_learning_rate}

    def prepare(self, context: Context, batch: ReplayBatch) -> ReplayBatch:
        replay_steps.turn_random_start(context, batch)
        return batch

    def minibatches(self, context: Context, prepared: ReplayBatch) -> Iterator[NoisyMinibatch]:
        """Drawn one after the other, between steps: whose turn it is shows in how many there were."""
        size = _distribution(context.models).dim
        for minibatch, noise in replay_steps.with_noise(context, prepared, num_draws=1, num_actions=size):
            turn = (int(_count(context.models)) + 1) % self._config.policy_delay == 0
            yield NoisyMinibatch(minibatch, noise, of_actor=turn)

    def update(self, context: Context, prepared: ReplayBatch, stepper: Stepper) -> Metrics:
        return replay_steps.gradient_steps(context, self.minibatches(context, prepared), stepper)

    def loss(self, context: Context, part: NoisyPart) -> Loss:
        """The critics', and where it is the actor's turn its own, which moves no critic."""
        models, rows, size = context.models, part.replayed.transitions, part.replayed.size
        actor, critic = samples.actor_critic(models), replay_steps.twin_critic(models)
        observations = actor.normalised(rows.observations)
        with torch.no_grad():
            targets = self._targets(models, rows, part.noise[:, 0])
        q_values = critic(observations, rows.actions)
        loss, errors = q_losses.twin_q_loss(q_values=q_values, targets=targets, weights=rows.weights, size=size)
        metrics = {
            "value_loss": loss.detach(),
            "q_mean": q_values.detach().mean(0).sum() / size,
            "td_error": errors.sum() / size,
        }
        if part.of_actor:
            actions = _distribution(models).mode(actor.policy_params(rows.observations))
            policy_loss = -critic(observations, actions, frozen=True)[0].sum() / size
            loss = loss + policy_loss
            metrics["policy_loss"] = policy_loss.detach()
        return Loss(loss, metrics, part.replayed.per_sample(errors))

    def after_step(self, context: Context) -> None:
        count = _count(context.models).add_(1)
        if int(count) % self._config.policy_delay == 0:
            for name in self.needs.target_networks:
                follow(context.models[TARGET + name], context.models[name], rate=self._config.target_rate)

    def _targets(self, models: Models, rows: Transitions, noise: Tensor) -> Tensor:
        """[B]: r + discount * min Q'(s', a'), a' near what the target actor does."""
        config, actor = self._config, cast(ActorCritic, models[TARGET + "actor_critic"])
        smoothing = (config.target_noise * noise).clamp(-config.target_noise_clip, config.target_noise_clip)
        means = _distribution(models).mode(actor.policy_params(rows.next_observations))
        seen = actor.normalised(rows.next_observations)
        critic = replay_steps.twin_critic(models, TARGET + "critic")
        values: Tensor = critic(seen, (means + smoothing).clamp(-1.0, 1.0)).amin(0)
        return rows.rewards + rows.discounts * values


def _distribution(models: Models) -> NoisyActions:
    return cast(NoisyActions, samples.actor_critic(models).distribution)


def _count(models: Models) -> Tensor:
    return cast(StepCount, models["step_count"]).value


ALGORITHM = TD3
