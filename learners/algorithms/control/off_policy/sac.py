"""SAC (Haarnoja et al., 2018, arXiv:1812.05905): the policy maximises reward and entropy, twin critics learn the soft
value from replay, and the temperature between the two is learnt. For choices, its discrete form (Christodoulou, 2019,
arXiv:1910.07207)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import TARGET, Context, Loss, Metrics, Models
from rollcall.learners.algorithms.control import samples
from rollcall.learners.algorithms.control.off_policy import replay_steps
from rollcall.learners.algorithms.control.off_policy.replay_steps import NoisyMinibatch, NoisyPart
from rollcall.learners.algorithms.control.off_policy.sac_config import DECLARED, SACConfig
from rollcall.learners.batches.replay_batch import ReplayBatch, Transitions
from rollcall.learners.maths import q_losses
from rollcall.learners.maths.categorical import Categorical
from rollcall.learners.maths.distributions import DiagonalGaussian
from rollcall.learners.models.temperature import Temperature
from rollcall.learners.update import Stepper, follow

ENTROPY_SHARE = 0.98  # of a uniform policy's, that a discrete one is to keep (Christodoulou, 2019)


class _Policy(NamedTuple):
    """What the present policy would do."""

    actions: Tensor | None  # [B, D] in (-1, 1), one for each row; None of choices, which are all looked at
    probs: Tensor  # [B], ones; of choices [B, n]
    logprobs: Tensor  # likewise


class SAC:
    """All gradients of a minibatch are taken at the same parameters, in one pass, and the three optimisers step
    together; the paper's code steps the critics first. The published policy is the actor alone."""

    Config = SACConfig
    name = "sac"
    unit: Unit = "fragment"
    needs = DECLARED.needs

    def __init__(self, config: SACConfig) -> None:
        self._config = config

    def networks(self, models: Models) -> Models:
        """Raises ValueError where the policy's actions are not of a form that SAC has."""
        distribution = samples.actor_critic(models).distribution
        if isinstance(distribution, DiagonalGaussian) and distribution.squash != "tanh":
            raise ValueError("squash=clip: sac's continuous actions keep within their bounds: set policy.squash=tanh")
        if not isinstance(distribution, DiagonalGaussian | Categorical):
            kind = type(distribution).__name__
            raise ValueError(f"sac has no form for actions of a {kind}: it needs a Box of floats, or Discrete")
        return {
            "critic": replay_steps.critic_for(models, algorithm=self.name),
            "temperature": Temperature(self._config.temperature, learnt=self._config.learn_temperature),
        }

    def learning_rates(self) -> Mapping[str, float | None]:
        rates = {"actor_critic": None, "critic": self._config.critic_learning_rate}
        if self._config.learn_temperature:
            rates["temperature"] = self._config.temperature_learning_rate
        return rates

    def prepare(self, context: Context, batch: ReplayBatch) -> ReplayBatch:
        replay_steps.turn_random_start(context, batch)
        return batch

    def minibatches(self, context: Context, prepared: ReplayBatch) -> Iterator[NoisyMinibatch]:
        """Two draws for each row: of the action in its state, and of the one in the next."""
        distribution = samples.actor_critic(context.models).distribution
        size = distribution.dim if isinstance(distribution, DiagonalGaussian) else 0
        for minibatch, noise in replay_steps.with_noise(context, prepared, num_draws=2, num_actions=size):
            yield NoisyMinibatch(minibatch, noise)

    def update(self, context: Context, prepared: ReplayBatch, stepper: Stepper) -> Metrics:
        return replay_steps.gradient_steps(context, self.minibatches(context, prepared), stepper)

    def loss(self, context: Context, part: NoisyPart) -> Loss:
        """The sum of three losses, of which each moves one model alone."""
        models, rows, size = context.models, part.replayed.transitions, part.replayed.size
        observations = samples.actor_critic(models).normalised(rows.observations)
        alpha = _temperature(models)()
        with torch.no_grad():
            targets = self._targets(models, rows, part.noise[:, 1], alpha)
        critic = replay_steps.twin_critic(models)
        q_values = critic(observations, *_given(models, rows))
        if q_values.dim() == 3:
            q_values = _at(q_values, rows.actions)
        critic_loss, errors = q_losses.twin_q_loss(q_values=q_values, targets=targets, weights=rows.weights, size=size)
        now = _policy(models, rows.observations, rows.action_mask, part.noise[:, 0])
        best = critic(observations, *_asked(now), frozen=True).amin(0)
        soft = now.probs * (alpha * now.logprobs - best)
        policy_loss = soft.sum() / size
        entropy = -(now.probs * now.logprobs).detach().sum() / size
        share = len(rows) / size  # of the minibatch, so that the processes' terms add up to one
        loss = critic_loss + policy_loss
        if self._config.learn_temperature:
            loss = loss + q_losses.temperature_loss(
                log_temperature=_temperature(models).log_value.squeeze(0),
                surplus=entropy - share * self._target_entropy(models),
            )
        metrics = {
            "policy_loss": policy_loss.detach(),
            "value_loss": critic_loss.detach(),
            "entropy": entropy,
            "temperature": alpha * share,
            "q_mean": q_values.detach().mean(0).sum() / size,
            "td_error": errors.sum() / size,
        }
        return Loss(loss, metrics, part.replayed.per_sample(errors))

    def after_step(self, context: Context) -> None:
        follow(context.models[TARGET + "critic"], context.models["critic"], rate=self._config.target_rate)

    def _targets(self, models: Models, rows: Transitions, noise: Tensor, alpha: Tensor) -> Tensor:
        """[B]: r + discount * (min Q'(s', a') - alpha log pi(a'|s')), a' of the present policy."""
        after = _policy(models, rows.next_observations, rows.next_action_mask, noise)
        seen = samples.actor_critic(models).normalised(rows.next_observations)
        q_values: Tensor = replay_steps.twin_critic(models, TARGET + "critic")(seen, *_asked(after)).amin(0)
        soft = after.probs * (q_values - alpha * after.logprobs)
        return rows.rewards + rows.discounts * (soft if soft.dim() == 1 else soft.sum(-1))

    def _target_entropy(self, models: Models) -> float:
        if self._config.target_entropy is not None:
            return self._config.target_entropy
        distribution = samples.actor_critic(models).distribution
        if isinstance(distribution, Categorical):
            return ENTROPY_SHARE * math.log(distribution.n)
        return -float(distribution.action_shape[0])


def _policy(models: Models, observations: Mapping[str, Tensor], mask: Tensor | None, noise: Tensor) -> _Policy:
    actor = samples.actor_critic(models)
    params, distribution = actor.policy_params(observations), actor.distribution
    if isinstance(distribution, Categorical):
        logits = params if mask is None else params.masked_fill(~mask, torch.finfo(params.dtype).min)
        logprobs = logits.log_softmax(-1)
        # What is forbidden has probability 0 and a log-probability that is finite: it counts nothing.
        return _Policy(None, logprobs.exp(), logprobs)
    unsquashed = distribution.sample(params, noise)
    logprobs = distribution.log_prob(params, unsquashed)
    return _Policy(torch.tanh(unsquashed), torch.ones_like(logprobs), logprobs)


def _asked(policy: _Policy) -> tuple[Tensor, ...]:
    """What a critic is given beside observations: of choices nothing, it values all."""
    return () if policy.actions is None else (policy.actions,)


def _given(models: Models, rows: Transitions) -> tuple[Tensor, ...]:
    discrete = isinstance(samples.actor_critic(models).distribution, Categorical)
    return () if discrete else (torch.tanh(rows.actions),)


def _at(q_values: Tensor, actions: Tensor) -> Tensor:
    """[2, B, n] at actions [B]: [2, B]."""
    index = actions.expand(q_values.shape[0], -1).unsqueeze(-1)
    return q_values.gather(-1, index).squeeze(-1)


def _temperature(models: Models) -> Temperature:
    return cast(Temperature, models["temperature"])


ALGORITHM = SAC
