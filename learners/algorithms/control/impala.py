"""IMPALA (Espeholt et al., 2018, arXiv:1802.01561): actor-critic whose targets V-trace corrects for the policy lag.
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
from rollcall.learners.maths.vtrace import vtrace


class IMPALAConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["impala"] = Field(default="impala", description="the algorithm")
    discount: float = Field(default=0.99, ge=0, le=1, description="weight of a reward one step later: the horizon")
    vtrace_lambda: float = Field(default=1.0, ge=0, le=1, description="lower: less variance, more of the critic's bias")
    rho_bar: float = Field(
        default=1.0, gt=0, description="bound of the ratio in the value target: which policy's value is learnt"
    )
    c_bar: float = Field(
        default=1.0, gt=0, description="bound of the ratio in the trace: how far credit travels, not where it converges"
    )
    pg_rho_bar: float | None = Field(
        default=None, gt=0, description="bound of the ratio in the policy gradient (None: rho_bar, as in the paper)"
    )
    epochs: int = Field(
        default=1, ge=1, description="passes over a batch; in all but the first step of it the targets are not renewed"
    )
    num_minibatches: int = Field(
        default=1, ge=1, description="gradient steps per pass; a recurrent policy's minibatch is whole env columns"
    )
    value_coef: float = Field(
        default=0.5, ge=0, description="weight of the value loss: actor and critic share a trunk, or a gradient clip"
    )
    entropy_coef: float = Field(default=0.01, ge=0, description="weight of the entropy bonus: keeps exploration alive")
    normalise_advantages: bool = Field(
        default=False, description="to mean 0, deviation 1 over the batch: frees the step from the reward's scale"
    )


class IMPALA:
    """V-trace's targets come from the parameters at the start of the batch, the ratio that weights the policy gradient
    from those whose gradient is taken: with one pass and one minibatch (the defaults) they are the same, as in the
    paper. With more, a ratio left as it was would push down actions whose probability the batch has taken already."""

    Config = IMPALAConfig
    name = "impala"
    unit: Unit = "fragment"
    corrects_policy_lag = True
    needs_critic = True

    def __init__(self, config: IMPALAConfig) -> None:
        self._config = config
        self._pg_rho_bar = config.rho_bar if config.pg_rho_bar is None else config.pg_rho_bar

    def extra_models(self) -> Mapping[str, nn.Module]:
        return {}

    @torch.no_grad()
    def prepare(self, models: Models, batch: GymBatch) -> ActorCriticRows:
        """V-trace targets and advantages, with the policy and the critic from before the batch's first update.

        Raises:
          ValueError: when the policy has no critic.
        """
        network = samples.actor_critic(models)
        before = samples.assess(network, batch, algorithm=self.name)
        vs, advantages = vtrace(
            behaviour_logprobs=batch.steps.behaviour_logprobs,
            target_logprobs=before.logprobs,
            rewards=batch.steps.rewards,
            values=before.values,
            next_values=before.next_values,
            terminated=batch.steps.terminated,
            truncated=batch.steps.truncated,
            mask=batch.steps.mask,
            discount=self._config.discount,
            lam=self._config.vtrace_lambda,
            rho_bar=self._config.rho_bar,
            c_bar=self._config.c_bar,
        )
        if self._config.normalise_advantages:
            advantages = losses.normalise_advantages(advantages=advantages, mask=batch.steps.mask.to(advantages.dtype))
        return samples.batch_rows(network, batch, ActorCriticTargets(advantages, vs))

    def minibatches(self, prepared: ActorCriticRows, generator: torch.Generator) -> Iterator[ActorCriticMinibatch]:
        for _ in range(self._config.epochs):
            grid = samples.shuffled_grid(prepared, self._config.num_minibatches, generator)
            yield from samples.grid_minibatches(grid)

    def loss(self, models: Models, minibatch: ActorCriticMinibatch) -> tuple[Tensor, Metrics]:
        rows, mask, num_valid = minibatch.rows, minibatch.rows.mask, minibatch.num_valid
        now = samples.evaluate(samples.actor_critic(models), rows)
        assert now.values is not None, "prepare refuses a policy without a critic"
        log_ratio = (now.logprobs - rows.steps.behaviour_logprobs).detach()
        ratio = log_ratio.exp()
        policy_loss = losses.policy_gradient_loss(
            target_logprobs=now.logprobs,
            advantages=ratio.clamp(max=self._pg_rho_bar) * rows.targets.advantages,
            mask=mask,
            num_valid=num_valid,
        )
        value_loss = losses.squared_value_loss(
            values=now.values, returns=rows.targets.returns, mask=mask, num_valid=num_valid
        )
        entropy = losses.masked_mean(now.entropy, mask=mask, num_valid=num_valid)
        total = policy_loss + self._config.value_coef * value_loss - self._config.entropy_coef * entropy
        with torch.no_grad():
            approx_kl = losses.approximate_kl(log_ratio=log_ratio, mask=mask, num_valid=num_valid)
            clip_fraction = losses.clip_fraction(  # ratios above rho_bar; V-trace has no lower bound
                ratio=ratio, clip_low=1.0, clip_high=self._config.rho_bar - 1.0, mask=mask, num_valid=num_valid
            )
        return total, {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "approx_kl": approx_kl,
            "clip_fraction": clip_fraction,
        }

    def stops_early(self, metrics: Metrics) -> bool:
        return False


ALGORITHM = IMPALA
