"""What the learner asks of an algorithm. One algorithm is one file that satisfies `Algorithm`; there is no base class
to inherit and no registry to edit: a recipe names the file. The learner knows nothing else about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit

Models = Mapping[str, nn.Module]  # control: {"actor_critic": ActorCritic}; language: {"policy": TokenPolicy, ...}
Metrics = dict[str, Tensor]  # 0-dim tensors


class Minibatch(Protocol):
    """What one gradient is computed from: StepMinibatch in control, TokenMinibatch in language."""

    @property
    def ends_epoch(self) -> bool: ...

    def shards(self, rank: int, num_processes: int) -> Iterable[Any]:
        """What this learner process computes the loss of, in portions that fit into memory: at least one. The losses,
        metrics and gradients of all portions of all processes add up to the minibatch's."""


class Algorithm(Protocol):
    """An algorithm is a small object built from its frozen config, `Algorithm(config)`. Its file names the class in the
    module variable ALGORITHM, and the class names its config model in the class attribute Config."""

    name: str
    unit: Unit  # what one ticket produces for it
    corrects_policy_lag: bool  # False: the loss assumes on-policy data, so max_policy_lag must be 0
    needs_critic: bool

    def extra_models(self) -> Mapping[str, nn.Module]:
        """State of its own (a moving-average baseline, say), as buffers: put into `models` and saved with them."""

    def prepare(self, models: Models, batch: Any) -> Any:
        """Once per batch, before the first epoch, without gradients: advantages, targets, flat views. A language
        algorithm is given a third argument, `each_token` (token_algorithm.py), for its forward passes."""

    def minibatches(self, prepared: Any, generator: torch.Generator) -> Iterator[Minibatch]:
        """All minibatches of all epochs, in order. All shuffling draws from `generator`."""

    def loss(self, models: Models, part: Any) -> tuple[Tensor, Metrics]:
        """Of one part of a minibatch: (sum over its valid steps / number of the whole minibatch's, metrics of the same
        form), so that sums over parts and processes are those of the whole. Pure: may be compiled."""

    def stops_early(self, metrics: Metrics) -> bool:
        """Asked after each epoch with the mean metrics of that epoch's minibatches: True ends the batch's updates."""
