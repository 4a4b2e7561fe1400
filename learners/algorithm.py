"""What the learner asks of an algorithm. One algorithm is one file that satisfies `Algorithm`; there is no base class
to inherit and no registry to edit: a recipe names the file. The learner knows nothing else about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rollcall.cluster.messages import Unit
from rollcall.learners.batch import GymBatch

Models = Mapping[str, nn.Module]  # gym: {"actor_critic": networks.ActorCritic}
Metrics = dict[str, Tensor]  # 0-dim tensors


@dataclass(frozen=True)
class Minibatch:
    """What one gradient is computed from. Every tensor's axis 0 is the sample axis, along which learner processes
    share the work: row i goes to process i mod N. What must be known of the whole minibatch is computed before."""

    tensors: Mapping[str, Tensor]  # [M, ...]
    num_valid: Tensor  # 0-dim float: valid steps in the whole minibatch, all processes together
    ends_epoch: bool = False

    def shard(self, rank: int, num_processes: int) -> Minibatch:
        if num_processes == 1:
            return self
        return Minibatch({k: v[rank::num_processes] for k, v in self.tensors.items()}, self.num_valid, self.ends_epoch)


class Algorithm(Protocol):
    """An algorithm is a small object built from its frozen config, `Algorithm(config)`. Its file names the class in the
    module variable ALGORITHM, and the class names its config model in the class attribute Config."""

    name: str
    unit: Unit  # what one ticket produces for it
    corrects_policy_lag: bool  # False: the loss assumes on-policy data, so max_policy_lag must be 0
    needs_critic: bool

    def extra_models(self) -> Mapping[str, nn.Module]:
        """State of its own (a moving-average baseline, say), as buffers: put into `models` and saved with them."""

    def prepare(self, models: Models, batch: GymBatch) -> Mapping[str, Tensor]:
        """Once per batch, before the first epoch, without gradients: advantages, targets, flat views."""

    def minibatches(self, prepared: Mapping[str, Tensor], generator: torch.Generator) -> Iterator[Minibatch]:
        """All minibatches of all epochs, in order. All shuffling draws from `generator`."""

    def loss(self, models: Models, minibatch: Minibatch) -> tuple[Tensor, Metrics]:
        """(sum over the minibatch's valid steps / num_valid, metrics of the same form), so that the sums over learner
        processes are the loss and the metrics of the whole minibatch. Pure: may be compiled."""

    def stops_early(self, metrics: Metrics) -> bool:
        """Asked after each epoch with the mean metrics of that epoch's minibatches: True ends the batch's updates."""
