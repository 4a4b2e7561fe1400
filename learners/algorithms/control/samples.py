"""How a batch becomes rows of samples, rows become minibatches, and a minibatch meets the network: what the algorithms
share besides mathematics.

Rows: without recurrence a row is one step (row t * B + b); with recurrence it is one env's whole sequence [T, ...], so
that a minibatch never cuts one. Dead steps stay in their rows with mask 0, which keeps every shape static.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import map_arrays
from rollcall.cluster.messages.steps import EnvSteps
from rollcall.learners.algorithm import Models
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.models.networks import ActorCritic

Targets = TypeVar("Targets")  # what an algorithm has computed of every step: a frozen dataclass of tensors


@dataclass(frozen=True)
class StepRows(Generic[Targets]):
    """Rows of steps: axis 0 of every tensor is the row's."""

    steps: EnvSteps[Tensor]  # the mask as float32
    targets: Targets
    initial_state: Tensor | None = None  # [M, num_states, hidden], of a policy with a memory

    @property
    def mask(self) -> Tensor:
        return self.steps.mask


@dataclass(frozen=True)
class StepMinibatch(Generic[Targets]):
    """What one gradient is computed from. Learner processes share the work by rows: row i goes to process i mod N. What
    must be known of the whole minibatch is computed before."""

    rows: StepRows[Targets]
    num_valid: Tensor  # 0-dim float: valid steps in the whole minibatch, all processes together
    ends_epoch: bool = False

    def shards(self, rank: int, num_processes: int) -> Sequence[StepMinibatch[Targets]]:
        if num_processes == 1:
            return (self,)
        mine = map_arrays(self.rows, lambda tensor: tensor[rank::num_processes])
        return (StepMinibatch(mine, self.num_valid, self.ends_epoch),)


@dataclass(frozen=True)
class StepGrid(Generic[Targets]):
    """One epoch's minibatches side by side: axis 0 of every tensor is the minibatch's."""

    rows: StepRows[Targets]  # [num_minibatches, rows of each, ...]
    num_valid: Tensor  # [num_minibatches]; a minibatch with no valid step counts one

    def __len__(self) -> int:
        return len(self.num_valid)

    def part(self, index: Tensor) -> StepMinibatch[Targets]:
        """The minibatch `index`, 0-dim."""

        def select(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, index.view(1)).squeeze(0)

        return StepMinibatch(map_arrays(self.rows, select), select(self.num_valid))

    def minibatches(self) -> Iterator[StepMinibatch[Targets]]:
        """In order; the last one ends the epoch."""
        unbound = map_arrays(self.rows, lambda tensor: tensor.unbind())
        for i, num_valid in enumerate(self.num_valid.unbind()):
            yield StepMinibatch(map_arrays(unbound, itemgetter(i)), num_valid, ends_epoch=i == len(self) - 1)


@dataclass(frozen=True)
class ActorCriticTargets:
    """What the losses of actor-critic algorithms are made of."""

    advantages: Tensor
    returns: Tensor  # what the critic is to say
    behaviour_values: Tensor | None = None  # what it said before the update, where it may not leap
    old_params: Tensor | None = None  # of the policy's distribution before the update, where it is held near that


ActorCriticRows = StepRows[ActorCriticTargets]
ActorCriticMinibatch = StepMinibatch[ActorCriticTargets]


class Evaluation(NamedTuple):
    """What the present parameters say about a minibatch. Shapes are those of its mask: [M], or [M, T]."""

    logprobs: Tensor  # of the actions taken
    entropy: Tensor
    values: Tensor | None  # None without a critic
    params: Tensor  # [..., P] of the distribution


def actor_critic(models: Models) -> ActorCritic:
    return cast(ActorCritic, models["actor_critic"])


def batch_rows(actor_critic: ActorCritic, batch: GymBatch, targets: Targets) -> StepRows[Targets]:
    """The batch as rows, with targets [T, B, ...]."""
    steps = replace(batch.steps, mask=batch.steps.mask.to(torch.float32))
    if not actor_critic.is_recurrent:
        return map_arrays(StepRows(steps, targets), lambda tensor: tensor.flatten(0, 1))
    assert batch.initial_recurrent_state is not None, "a recurrent policy's trajectories carry its initial state"
    rows = StepRows(steps, targets, batch.initial_recurrent_state)
    return map_arrays(rows, lambda tensor: tensor.transpose(0, 1).contiguous())


def evaluate(actor_critic: ActorCritic, rows: StepRows[Targets]) -> Evaluation:
    """Runs the network over rows and evaluates the actions in them."""
    steps = rows.steps
    if actor_critic.is_recurrent:
        assert rows.initial_state is not None
        params, values, _ = actor_critic(
            {name: x.transpose(0, 1) for name, x in steps.observations.items()},
            initial_state=rows.initial_state.transpose(0, 1).contiguous(),
            episode_starts=steps.episode_starts.transpose(0, 1),
        )
        params = params.transpose(0, 1)
        values = None if values is None else values.transpose(0, 1)
    else:
        params, values, _ = actor_critic(steps.observations)
    distribution = actor_critic.distribution
    return Evaluation(
        logprobs=distribution.log_prob(params, steps.actions, steps.action_mask),
        entropy=distribution.entropy(params, steps.action_mask),
        values=values,
        params=params,
    )


def shuffled_grid(rows: StepRows[Targets], num_minibatches: int, generator: torch.Generator) -> StepGrid[Targets]:
    """One epoch's minibatches, shuffled by one gather per tensor.

    Every row is in exactly one minibatch. Where their number does not divide, some minibatches end with a copy of a
    row whose mask is 0, so that all have one shape. There are never more minibatches than rows; one is not shuffled.
    """
    mask = rows.steps.mask
    num_rows = len(mask)
    num_minibatches = min(num_minibatches, num_rows)
    if num_minibatches == 1:
        return _grid(map_arrays(rows, lambda tensor: tensor.unsqueeze(0)))
    size = -(-num_rows // num_minibatches)
    num_copies = size * num_minibatches - num_rows
    order = torch.randperm(num_rows, generator=generator, device=generator.device).to(mask.device)
    if num_copies:
        full = num_minibatches * (size - 1)
        last_column = torch.cat([order[full:], order[:num_copies]])
        order = torch.cat([order[:full].view(-1, size - 1), last_column.unsqueeze(1)], dim=1).flatten()
    grid = map_arrays(rows, lambda tensor: tensor.index_select(0, order).view(num_minibatches, size, *tensor.shape[1:]))
    if num_copies:
        grid.steps.mask[num_minibatches - num_copies :, -1] = 0.0
    return _grid(grid)


def _grid(rows: StepRows[Targets]) -> StepGrid[Targets]:
    return StepGrid(rows, rows.mask.flatten(1).sum(1).clamp_(min=1.0))


class Assessment(NamedTuple):
    """What the present parameters say about a batch, without gradient. All are [T, B], but for the last."""

    logprobs: Tensor  # of the actions taken
    values: Tensor
    next_values: Tensor
    params: Tensor  # [T, B, P] of the distribution


def assess(actor_critic: ActorCritic, batch: GymBatch, *, algorithm: str) -> Assessment:
    """`state_values`, and the log-probabilities of the batch's actions, in one pass.

    Raises:
      ValueError: when the policy has no critic.
    """
    _check_critic(actor_critic, algorithm)
    params, values, next_values = actor_critic.assess(batch)
    logprobs = actor_critic.distribution.log_prob(params, batch.steps.actions, batch.steps.action_mask)
    return Assessment(logprobs, values, next_values, params)


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
