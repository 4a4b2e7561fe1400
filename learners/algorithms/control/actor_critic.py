"""What the algorithms of control share beside mathematics: settings, what returns are made of, minibatches, and how the
terms of a loss come together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from rollcall.cluster.messages.steps import EnvSteps
from rollcall.learners.algorithm import Context, Loss, Models
from rollcall.learners.algorithms.control import samples
from rollcall.learners.algorithms.control.samples import ActorCriticMinibatch, ActorCriticRows
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.maths import losses
from rollcall.learners.maths.trust_region import HasKL
from rollcall.learners.models.networks import ActorCritic


def credit(batch: GymBatch) -> dict[str, Tensor]:
    """What every estimate of returns takes from a batch, by name."""
    return {
        "rewards": batch.steps.rewards,
        "terminated": batch.steps.terminated,
        "truncated": batch.steps.truncated,
        "mask": batch.steps.mask,
    }


def check_kl(models: Models, *, what: str) -> None:
    """Raises ValueError where the policy's actions have no KL."""
    network = samples.actor_critic(models)
    if not isinstance(network.distribution, HasKL):
        setting = "q" if network.config.q is not None else "exploration_noise"
        value = getattr(network.config, setting)
        raise ValueError(f"{setting}={value}: {what} needs a policy that draws its actions: remove this setting")


def kl(network: ActorCritic, old_params: Tensor, params: Tensor, steps: EnvSteps[Tensor]) -> Tensor:
    """KL(before || now), of every step's distribution."""
    return cast(HasKL, network.distribution).kl(old_params, params, steps.action_mask)


def over_batch(advantages: Tensor, batch: GymBatch, *, normalise: bool) -> Tensor:
    """The advantages, with mean 0 and deviation 1 over the batch if they are to be normalised."""
    if not normalise:
        return advantages
    return losses.normalise_advantages(advantages=advantages, mask=batch.steps.mask.to(advantages.dtype))


def note_critic(context: Context, batch: GymBatch, *, values: Tensor, returns: Tensor) -> None:
    """Notes how much of the returns' variance the critic knew before it learnt from them."""
    mask = batch.steps.mask.to(values.dtype)
    context.noted["explained_variance"] = losses.explained_variance(values=values, returns=returns, mask=mask)


def minibatches(
    context: Context, rows: ActorCriticRows, *, epochs: int = 1, num_minibatches: int = 1
) -> Iterator[ActorCriticMinibatch]:
    """By default the batch itself, once: a second step on it would be off-policy."""
    for _ in range(epochs):
        yield from samples.shuffled_grid(rows, num_minibatches, context.generator).minibatches()


def joined(
    now: samples.Evaluation,
    minibatch: ActorCriticMinibatch,
    *,
    policy_loss: Tensor,
    log_ratio: Tensor,
    entropy_coef: float,
    value_loss: Tensor | None = None,
    value_coef: float = 0.0,
    penalty: Tensor | None = None,
    **metrics: Tensor,
) -> Loss:
    """The loss of its terms, and what is reported of any of them."""
    over = {"mask": minibatch.rows.mask, "num_valid": minibatch.num_valid}
    entropy = losses.masked_mean(now.entropy, **over)
    total = policy_loss if value_loss is None else policy_loss + value_coef * value_loss
    if penalty is not None:
        total = total + penalty
    if entropy_coef:
        total = total - entropy_coef * entropy
    with torch.no_grad():
        approx_kl = losses.masked_mean(losses.k3(log_ratio), **over)  # zero, unless the policy lags or has moved
    terms = {"policy_loss": policy_loss, "entropy": entropy, "approx_kl": approx_kl, **metrics}
    if value_loss is not None:
        terms["value_loss"] = value_loss
    return Loss(total, {name: term.detach() for name, term in terms.items()})
