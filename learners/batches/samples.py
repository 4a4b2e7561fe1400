"""How a batch becomes rows of samples, rows become minibatches, and a minibatch meets the network: what the algorithms
share besides mathematics. This file must never know which algorithm asks, nor of processes.

Rows: without recurrence a row is one step (row t * B + b); with recurrence it is one env's whole sequence [T, ...], so
that a minibatch never cuts one. Dead steps stay in their rows with mask 0, which keeps every shape static.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from rollcall.learners.algorithm import Models, StepMinibatch
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.models.networks import ActorCritic

_OBSERVATION = "observation."  # prefix of the rows that are observations


class Evaluation(NamedTuple):
    """What the present parameters say about a minibatch. Shapes are those of its mask: [M], or [M, T]."""

    logprobs: Tensor  # of the actions taken
    entropy: Tensor
    values: Tensor | None  # None without a critic


def actor_critic(models: Models) -> ActorCritic:
    return cast(ActorCritic, models["actor_critic"])


def batch_rows(actor_critic: ActorCritic, batch: GymBatch, **per_step: Tensor) -> dict[str, Tensor]:
    """The batch, and tensors [T, B, ...] computed from it, as rows. Masks become float32."""
    steps = {_OBSERVATION + name: tensor for name, tensor in batch.observations.items()}
    steps |= {"actions": batch.actions, "behaviour_logprobs": batch.behaviour_logprobs}
    steps["mask"] = batch.mask.to(torch.float32)
    if batch.action_mask is not None:
        steps["action_mask"] = batch.action_mask
    steps |= per_step
    if not actor_critic.is_recurrent:
        return {name: tensor.flatten(0, 1) for name, tensor in steps.items()}
    assert batch.initial_recurrent_state is not None, "a recurrent policy's trajectories carry its initial state"
    steps["episode_starts"] = batch.episode_starts
    rows = {name: tensor.transpose(0, 1).contiguous() for name, tensor in steps.items()}
    rows["initial_state"] = batch.initial_recurrent_state.transpose(0, 1).contiguous()
    return rows


def evaluate(actor_critic: ActorCritic, rows: Mapping[str, Tensor]) -> Evaluation:
    """Runs the network over rows and evaluates the actions in them."""
    observations = {name[len(_OBSERVATION) :]: x for name, x in rows.items() if name.startswith(_OBSERVATION)}
    if actor_critic.is_recurrent:
        params, values, _ = actor_critic(
            {name: x.transpose(0, 1) for name, x in observations.items()},
            initial_state=rows["initial_state"].transpose(0, 1).contiguous(),
            episode_starts=rows["episode_starts"].transpose(0, 1),
        )
        params = params.transpose(0, 1)
        values = None if values is None else values.transpose(0, 1)
    else:
        params, values, _ = actor_critic(observations)
    action_mask = rows.get("action_mask")
    distribution = actor_critic.distribution
    return Evaluation(
        logprobs=distribution.log_prob(params, rows["actions"], action_mask),
        entropy=distribution.entropy(params, action_mask),
        values=values,
    )


def shuffled_grid(rows: Mapping[str, Tensor], num_minibatches: int, generator: torch.Generator) -> dict[str, Tensor]:
    """One epoch's minibatches as tensors [num_minibatches, rows of each, ...], shuffled by one gather per tensor.

    Every row is in exactly one minibatch. Where their number does not divide, some minibatches end with a copy of a
    row whose mask is 0, so that all have one shape. There are never more minibatches than rows; one is not shuffled.
    """
    num_rows = len(rows["mask"])
    num_minibatches = min(num_minibatches, num_rows)
    if num_minibatches == 1:
        return {name: tensor.unsqueeze(0) for name, tensor in rows.items()}
    size = -(-num_rows // num_minibatches)
    num_copies = size * num_minibatches - num_rows
    order = torch.randperm(num_rows, generator=generator, device=generator.device).to(rows["mask"].device)
    if num_copies:
        full = num_minibatches * (size - 1)
        last_column = torch.cat([order[full:], order[:num_copies]])
        order = torch.cat([order[:full].view(-1, size - 1), last_column.unsqueeze(1)], dim=1).flatten()
    grid = {
        name: tensor.index_select(0, order).view(num_minibatches, size, *tensor.shape[1:])
        for name, tensor in rows.items()
    }
    if num_copies:
        grid["mask"][num_minibatches - num_copies :, -1] = 0.0
    return grid


def grid_minibatches(grid: Mapping[str, Tensor]) -> Iterator[StepMinibatch]:
    """The rows of a grid, in order; the last one ends the epoch. A minibatch with no valid step counts one."""
    num_valid = grid["mask"].flatten(1).sum(1).clamp_(min=1.0).unbind()
    columns = [tensor.unbind() for tensor in grid.values()]
    last = len(num_valid) - 1
    for i, tensors in enumerate(zip(*columns, strict=True)):
        yield StepMinibatch(dict(zip(grid, tensors, strict=True)), num_valid[i], ends_epoch=i == last)


class Assessment(NamedTuple):
    """What the present parameters say about a batch, without gradient. All are [T, B]."""

    logprobs: Tensor  # of the actions taken
    values: Tensor
    next_values: Tensor


def assess(actor_critic: ActorCritic, batch: GymBatch, *, algorithm: str) -> Assessment:
    """`state_values`, and the log-probabilities of the batch's actions, in one pass.

    Raises:
      ValueError: when the policy has no critic.
    """
    _check_critic(actor_critic, algorithm)
    params, values, next_values = actor_critic.assess(batch)
    logprobs = actor_critic.distribution.log_prob(params, batch.actions, batch.action_mask)
    return Assessment(logprobs, values, next_values)


def state_values(actor_critic: ActorCritic, batch: GymBatch, *, algorithm: str) -> tuple[Tensor, Tensor]:
    """(values, next_values), both [T, B]: the critic's value before and after each step, without gradient.

    Raises:
      ValueError: when the policy has no critic.
    """
    _check_critic(actor_critic, algorithm)
    return actor_critic.bootstrap(batch)


def _check_critic(actor_critic: ActorCritic, algorithm: str) -> None:
    if actor_critic.value_head is None:
        raise ValueError(f"{algorithm} needs a critic and the policy has none: build it with one")
