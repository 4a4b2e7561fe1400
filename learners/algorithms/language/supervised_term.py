"""A supervised term beside a policy's loss, as PPO-ptx has it (Ouyang et al., 2022, arXiv:2203.02155, eq. 2): for every
gradient step some demonstrations, or texts, whose likelihood rises with the objective, so that what was known before is
not forgotten for the reward's sake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch

from rollcall.learners.algorithm import Loss, Models
from rollcall.learners.batches.token_batch import TokenBatch, TokenMinibatch, TokenPart
from rollcall.learners.maths.sampling import Processed


@dataclass(frozen=True)
class SupervisedPart:
    """Some of the demonstrations of a minibatch."""

    part: TokenPart[None]

    def loss(self, models: Models, *, coef: float) -> Loss:
        """The part's share of coef * (-log pi(token)), a mean over the minibatch's demonstrated tokens, under the model
        itself: without the temperature that it samples with. ptx_loss is without coef."""
        now = cast(Processed, models["policy"](self.part.rows, as_sampled=False))
        mean = -(self.part.weights * now.logprobs).sum()
        return Loss(coef * mean, {"ptx_loss": mean.detach()})


@dataclass(frozen=True)
class MixedMinibatch:
    """What one gradient is computed from: what was sampled, and what is imitated beside it."""

    sampled: TokenMinibatch[Any]
    supervised: TokenMinibatch[None]

    @property
    def ends_epoch(self) -> bool:
        return self.sampled.ends_epoch

    def shards(self, rank: int, num_processes: int) -> Iterator[TokenPart[Any] | SupervisedPart]:
        yield from self.sampled.shards(rank, num_processes)
        yield from map(SupervisedPart, self.supervised.shards(rank, num_processes))


def beside(
    minibatches: Iterator[TokenMinibatch[Any]], batch: TokenBatch, num_minibatches: int, *, token_budget: int
) -> Iterator[TokenMinibatch[Any] | MixedMinibatch]:
    """The minibatches, each with its share of the batch's demonstrations, where there are some: an epoch's minibatches
    have as many each, in the order in which they stand, and every epoch passes over all of them."""
    supervised = batch.supervised
    if supervised is None:
        yield from minibatches
        return
    shares = torch.arange(supervised.num_samples).tensor_split(min(num_minibatches, batch.num_samples))
    for index, minibatch in enumerate(minibatches):
        own = shares[index % len(shares)]
        in_share = torch.isin(supervised.sequence, own.to(supervised.sequence.device))
        weights = in_share / in_share.sum()
        parts = supervised.micro_batches(own.tolist(), token_budget)
        yield MixedMinibatch(minibatch, TokenMinibatch(supervised, weights, weights, targets=None, parts=parts))
