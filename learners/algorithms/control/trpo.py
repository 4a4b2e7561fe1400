"""TRPO (Schulman et al., 2015, arXiv:1502.05477): the largest step along the natural gradient that the mean KL to the
policy before it allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Metrics, Models
from rollcall.learners.algorithms.control import actor_critic, samples
from rollcall.learners.algorithms.control.actor_critic import credit
from rollcall.learners.algorithms.control.samples import StepMinibatch, StepRows
from rollcall.learners.algorithms.control.trpo_config import DECLARED, TRPOConfig
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.maths import losses
from rollcall.learners.maths.returns import gae
from rollcall.learners.maths.trust_region import conjugate_gradient
from rollcall.learners.update import Stepper


@dataclass(frozen=True)
class TRPOTargets:
    advantages: Tensor
    returns: Tensor
    old_params: Tensor  # [..., P]: of the policy's distribution before the update


TRPOMinibatch = StepMinibatch[TRPOTargets]


class TRPO:
    """The ratio's denominator are the behaviour log-probabilities, so experience of an older version stays sound; the
    trust region is around the policy from before the update, whoever acted."""

    Config = TRPOConfig
    name = "trpo"
    unit: Unit = "fragment"
    needs = DECLARED.needs

    def __init__(self, config: TRPOConfig) -> None:
        self._config = config

    def check_models(self, models: Models) -> None:
        """Fitting a critic that shares parameters with the policy would move the policy, past every trust region."""
        actor_critic.check_kl(models, what=self.name)
        network = samples.actor_critic(models)
        why = "trpo fits the critic apart from the policy, so they cannot share"
        if network.is_recurrent:
            raise ValueError(f"recurrent={network.config.recurrent}: {why} a memory: use none, or another algorithm")
        if network.value_head is not None and network.value_torso is None:
            raise ValueError(f"shared_torso={network.config.shared_torso}: {why} a torso: set it to false")

    @torch.no_grad()
    def prepare(self, context: Context, batch: GymBatch) -> StepRows[TRPOTargets]:
        """Advantages and returns with the present critic, and the policy from before the update.

        Raises:
          ValueError: when the policy has no critic.
        """
        config, network = self._config, samples.actor_critic(context.models)
        before = samples.assess(network, batch, algorithm=self.name)
        advantages, returns = gae(
            values=before.values,
            next_values=before.next_values,
            discount=config.discount,
            lam=config.gae_lambda,
            **credit(batch),
        )
        actor_critic.note_critic(context, batch, values=before.values, returns=returns)
        advantages = actor_critic.over_batch(advantages, batch, normalise=config.normalise_advantages)
        return samples.batch_rows(network, batch, TRPOTargets(advantages, returns, before.params))

    def minibatches(self, context: Context, prepared: StepRows[TRPOTargets]) -> Iterator[TRPOMinibatch]:
        """The batch itself, once: what the policy's step is made of."""
        yield from samples.shuffled_grid(prepared, 1, context.generator).minibatches()

    def loss(self, context: Context, minibatch: TRPOMinibatch) -> Loss:
        """-L: the surrogate mean(ratio * A), negated."""
        rows, over = minibatch.rows, {"mask": minibatch.rows.mask, "num_valid": minibatch.num_valid}
        steps, network = rows.steps, samples.actor_critic(context.models)
        distribution, params = network.distribution, network.policy_params(rows.steps.observations)
        log_ratio = distribution.log_prob(params, steps.actions, steps.action_mask) - steps.behaviour_logprobs
        surrogate = -losses.masked_mean(log_ratio.exp() * rows.targets.advantages, **over)
        with torch.no_grad():
            metrics = {
                "policy_loss": surrogate.detach(),
                "entropy": losses.masked_mean(distribution.entropy(params, steps.action_mask), **over),
                "approx_kl": losses.masked_mean(losses.k3(log_ratio), **over),
                "kl_old": losses.masked_mean(actor_critic.kl(network, rows.targets.old_params, params, steps), **over),
            }
        return Loss(surrogate, metrics)

    def update(self, context: Context, prepared: StepRows[TRPOTargets], stepper: Stepper) -> Metrics:
        """The policy's one step, then the critic's."""
        (whole,) = self.minibatches(context, prepared)
        policy = self._step_of_policy(whole, stepper)
        return {**policy, "value_loss": self._fit_critic(context, prepared, stepper)}

    def _step_of_policy(self, whole: TRPOMinibatch, stepper: Stepper) -> Metrics:
        """The natural gradient F^-1 g, as long as the quadratic model of the KL allows, and shortened until the true KL
        is within the bound and the surrogate better. Where no length will do, the policy stays as it was."""
        config = self._config
        before = stepper.loss_and_gradient(whole)
        old, downhill = stepper.parameters, -stepper.gradient
        norm = torch.linalg.vector_norm(downhill)
        step = torch.zeros_like(old)
        if float(norm) != 0.0:
            times = partial(_fisher_times, stepper, whole, config.cg_damping)
            step = conjugate_gradient(times, downhill, iterations=config.cg_iterations)
            step *= (2.0 * config.max_kl / (step @ times(step))).sqrt()
        after, tried = before, 0
        for tried in range(config.line_search_steps):
            stepper.write(old + config.line_search_shrink**tried * step)
            after = stepper.loss(whole)
            if after.loss < before.loss and after.metrics["kl_old"] <= config.max_kl:
                break
        else:
            tried, after = config.line_search_steps, before
            stepper.write(old)
        shortened = torch.full_like(norm, float(tried))
        return {"loss": after.loss, **after.metrics, "grad_norm": norm, "line_search_steps": shortened}

    def _fit_critic(self, context: Context, prepared: StepRows[TRPOTargets], stepper: Stepper) -> Tensor:
        """Its mean loss. The gradient of the policy's parameters is zero here, and an optimiser leaves them alone."""
        found = []
        for _ in range(self._config.critic_epochs):
            grid = samples.shuffled_grid(prepared, self._config.critic_minibatches, context.generator)
            for minibatch in grid.minibatches():
                found.append(stepper.loss_and_gradient(minibatch, _critic_loss).loss)
                stepper.step()
        return torch.stack(found).mean()


def _kl(context: Context, minibatch: TRPOMinibatch) -> Tensor:
    """Mean KL(before || now); the critic is not computed."""
    rows, network = minibatch.rows, samples.actor_critic(context.models)
    params = network.policy_params(rows.steps.observations)
    kl = actor_critic.kl(network, rows.targets.old_params, params, rows.steps)
    return losses.masked_mean(kl, mask=rows.mask, num_valid=minibatch.num_valid)


def _critic_loss(context: Context, minibatch: TRPOMinibatch) -> Loss:
    rows = minibatch.rows
    values = samples.actor_critic(context.models).state_values(rows.steps.observations)
    assert values is not None, "prepare refuses a policy without a critic"
    over = {"mask": rows.mask, "num_valid": minibatch.num_valid}
    return Loss(losses.squared_value_loss(values=values, returns=rows.targets.returns, **over), {})


def _fisher_times(stepper: Stepper, whole: TRPOMinibatch, damping: float, vector: Tensor) -> Tensor:
    """(F + damping) v, where F is the Hessian of the KL at the old policy, Fisher's information: the gradient of
    (gradient of the KL) . v. No matrix is made."""
    places = stepper.views(vector)
    parameters = [parameter for parameter, _ in places]

    def directional(context: Context, part: TRPOMinibatch) -> Loss:
        kl = _kl(context, part)
        found = torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True)
        return Loss(torch.stack([(g * v).sum() for g, (_, v) in zip(found, places, strict=True)]).sum(), {})

    stepper.loss_and_gradient(whole, directional)
    return stepper.gradient + damping * vector


ALGORITHM = TRPO
