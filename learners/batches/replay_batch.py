"""One learner step's batch of replayed experience: the minibatches of its gradient steps, sampled already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.data.transitions import TransitionRows

Transitions = TransitionRows[Tensor]


@dataclass(frozen=True)
class ReplayMinibatch:
    """What one gradient is computed from. Learner processes share the work by rows: row i goes to process i mod N.

    A loss is the sum over a part's rows / `size`, so that sums over processes are those of the whole minibatch.
    """

    transitions: Transitions  # of this part
    size: int  # rows of the whole minibatch, all processes together
    places: Tensor  # int64 [B]: where among the learner step's rows, at most `num_samples`, this part's lie
    num_samples: int
    ends_epoch: bool = False  # the last one of the learner step

    def shards(self, rank: int, num_processes: int) -> Sequence[ReplayMinibatch]:
        if num_processes == 1:
            return (self,)
        mine = self.transitions.rows(slice(rank, None, num_processes))
        return (ReplayMinibatch(mine, self.size, self.places[rank::num_processes], self.num_samples, self.ends_epoch),)

    def per_sample(self, values: Tensor) -> Tensor:
        """[B] -> [num_samples], 0 at other minibatches' rows: what `Loss.per_sample` is to be (absolute TD errors,
        which become priorities)."""
        return values.new_zeros(self.num_samples).index_put((self.places,), values.detach())


class Drawn(Protocol):
    """The transitions of each gradient step of a learner step: a list of them, say."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Transitions: ...


@dataclass(frozen=True)
class ReplayBatch:
    """What a ReplayCollator gives to an algorithm's `prepare`. Sampling is over before the first gradient step:
    priorities that a step finds count from the next learner step on."""

    drawn: Drawn  # U minibatches, one for each gradient step; none before `learning_starts`
    added: GymBatch  # the fresh experience of this step's tickets, which is in the buffer by now
    step: int = 0  # the learner step
    env_steps: int = 0  # of the run so far, with this step's: what schedules count
    batch_size: int | None = None  # of every minibatch; None: as the first one is
    num_samples: int | None = None  # places for rows, the same in every learner step, so that a loss is compiled once

    def minibatches(self) -> Iterator[ReplayMinibatch]:
        """One for each gradient step, in order. Each is gathered when it is asked for."""
        number = len(self.drawn)
        for i in range(number):
            transitions = self.drawn[i]
            size = len(transitions) if self.batch_size is None else self.batch_size
            places = torch.arange(i * size, (i + 1) * size, device=transitions.rewards.device)
            num_samples = number * size if self.num_samples is None else self.num_samples
            yield ReplayMinibatch(transitions, size, places, num_samples, ends_epoch=i == number - 1)
