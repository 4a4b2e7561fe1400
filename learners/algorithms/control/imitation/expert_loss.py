"""What the algorithms that imitate an expert share: the loss, and what is reported of it."""

from __future__ import annotations

import torch
from torch import Tensor

from rollcall.learners.algorithm import Context, Loss
from rollcall.learners.algorithms.control import samples
from rollcall.learners.algorithms.control.imitation.expert_loss_config import LossName
from rollcall.learners.batches.replay_batch import ReplayMinibatch, Transitions
from rollcall.learners.maths.distributions import ActionDistribution, DiagonalGaussian
from rollcall.learners.maths.epsilon_greedy import EpsilonGreedy
from rollcall.learners.maths.noisy_actions import NoisyActions
from rollcall.learners.models.networks import ActorCritic


def imitation_loss(context: Context, minibatch: ReplayMinibatch, *, loss: LossName, entropy_coef: float) -> Loss:
    """-log pi(a | s), or the squared distance from a, of the expert's actions a: the sum over this part's rows, over
    the size of the whole minibatch."""
    network = samples.actor_critic(context.models)
    rows, size = minibatch.transitions, minibatch.size
    params, distribution = network.policy_params(rows.observations), network.distribution
    nll = -distribution.log_prob(params, rows.actions, rows.action_mask).sum() / size
    entropy = distribution.entropy(params, rows.action_mask).sum() / size
    metrics = {"negative_log_likelihood": nll.detach(), "entropy": entropy.detach()}
    if isinstance(distribution, DiagonalGaussian | NoisyActions):
        distance = squared_distance(distribution, params, rows.actions).sum() / size
        metrics["action_error"] = distance.detach()
        total = distance if loss == "mse" else nll
    else:
        metrics["agreement"] = _agreement(distribution, params, rows) / size
        total = nll
    if entropy_coef:
        total = total - entropy_coef * entropy
    return Loss(total, metrics)


def squared_distance(distribution: DiagonalGaussian | NoisyActions, params: Tensor, actions: Tensor) -> Tensor:
    """[B]: of the likeliest action from the expert's, a mean over their numbers: in the env's units, or, squashed, in
    units of half the range between the bounds."""
    mean = distribution.mode(params)
    if isinstance(distribution, DiagonalGaussian) and distribution.squash == "tanh":
        mean, actions = mean.tanh(), actions.tanh()
    return (mean - actions).square().mean(-1)


@torch.no_grad()
def _agreement(distribution: ActionDistribution, params: Tensor, rows: Transitions) -> Tensor:
    """How many of the likeliest actions are the expert's."""
    same = distribution.mode(params, rows.action_mask) == rows.actions
    return same.flatten(1).all(1).sum().float() if same.ndim > 1 else same.sum().float()


def check(network: ActorCritic, *, algorithm: str, loss: LossName) -> None:
    """Raises ValueError: where this network cannot learn by this loss."""
    distribution = network.distribution
    if network.is_recurrent:
        raise ValueError(f"recurrent={network.config.recurrent}: {algorithm} learns from single steps: use none")
    if isinstance(distribution, EpsilonGreedy):
        raise ValueError(
            f"q={network.config.q}: {algorithm} imitates by probabilities, and these are values: leave it out"
        )
    if isinstance(distribution, NoisyActions) and loss == "nll":
        raise ValueError(
            f"algorithm.loss=nll: {algorithm} has no likelihood of a deterministic policy "
            "(policy.exploration_noise): use mse"
        )
    if loss == "mse" and not isinstance(distribution, DiagonalGaussian | NoisyActions):
        raise ValueError(f"algorithm.loss=mse: {algorithm} has no distance between discrete actions: use nll")
