"""What the direct methods share (DPO, IPO, group-robust DPO): log-probabilities of whole responses under the policy and
the frozen reference, and what is reported of them. A method is its config and the loss of a pair.

The implicit reward of a response is log pi(response | prompt) - log ref(response | prompt), in units of beta (Rafailov
et al., 2023, arXiv:2305.18290, eq. 5): a sum over the response's tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Models
from rollcall.learners.algorithms.preferences.direct_preference_config import DirectMethodConfig
from rollcall.learners.batches.passes import share_of
from rollcall.learners.batches.preference_batch import Pairs, PreferenceBatch, PreferenceMinibatch, PreferencePart
from rollcall.learners.collective import Collective
from rollcall.learners.declared import Needs
from rollcall.learners.maths.preference_losses import soft_labelled, sums_by_owner
from rollcall.learners.maths.sampling import Processed

ConfigT = TypeVar("ConfigT", bound=DirectMethodConfig)


@dataclass(frozen=True)
class Referenced:
    """A batch, and what does not change while it is learnt from."""

    batch: PreferenceBatch
    reference_logprobs: Tensor  # [N]: of the responses under the reference
    pair_scale: Tensor  # [P]: what a pair's loss is multiplied by, beside its weight; 1 without groups


@dataclass(frozen=True)
class ReferencedPart:
    """Some comparisons of a batch."""

    part: PreferencePart
    reference_logprobs: Tensor  # [n]
    pair_scale: Tensor  # [P]


@dataclass(frozen=True)
class ReferencedMinibatch:
    """What one gradient is computed from."""

    prepared: Referenced
    whole: PreferenceMinibatch
    ends_epoch: bool = True

    def shards(self, rank: int, num_processes: int) -> Iterator[ReferencedPart]:
        for part in self.whole.shards(rank, num_processes):
            yield ReferencedPart(
                part, self.prepared.reference_logprobs[list(part.chosen)], self.prepared.pair_scale[part.pair_indices]
            )


class DirectAlgorithm(Generic[ConfigT]):
    """A mean over comparisons of the method's losses of pairs; the reference is the policy as it was."""

    unit: Unit = "prompt"
    needs = Needs(reference=True)

    def __init__(self, method: DirectMethod[ConfigT], config: ConfigT) -> None:
        self.config = config
        self.name = method.name
        self.beta = config.reward_scale
        self.pair_losses = partial(method.pair_losses, config)

    @torch.no_grad()
    def prepare(self, context: Context, batch: PreferenceBatch) -> Referenced:
        reference = self.each_response(context, batch, name="reference")
        return Referenced(batch, reference, torch.ones_like(batch.pairs.margins))

    def minibatches(self, context: Context, prepared: Referenced) -> Iterator[ReferencedMinibatch]:
        """One: the whole batch."""
        parts = prepared.batch.parts(self.config.budget)
        yield ReferencedMinibatch(prepared, PreferenceMinibatch(prepared.batch, parts))

    def loss(self, context: Context, part: ReferencedPart) -> Loss:
        """The part's share of the batch's mean over comparisons, and its share of the metrics."""
        pairs = part.part.pairs
        # [n]: log pi / ref of each response: its implicit reward in units of beta.
        ratios = response_logprobs(context.models, part.part) - part.reference_logprobs
        differences, weights = pairs.differences(ratios), pairs.weights[0]
        losses = self.judged(differences, pairs)
        loss = (weights * part.pair_scale * losses).sum()
        with torch.no_grad():
            right = torch.where(pairs.tied, torch.zeros_like(differences), differences.sign()) / 2 + 0.5
            metrics = {
                "mean_loss": (weights * losses).sum(),
                "implicit_accuracy": (weights * right).sum(),
                "implicit_margin": self.beta * (weights * differences).sum(),
                # Of the data's responses, not of the policy's own: how far their log-probabilities have moved.
                "log_ratio_mean": ratios.sum() / part.part.batch.num_candidates,
                "better_log_ratio": (weights * ratios[pairs.better]).sum(),
                "worse_log_ratio": (weights * ratios[pairs.worse]).sum(),
            }
        return Loss(loss, metrics)

    def judged(self, differences: Tensor, pairs: Pairs) -> Tensor:
        """[P]: the pairs' losses, that of a tie the mean of both answers', that of a soft label their expectation."""
        losses, other = self.pair_losses(differences), self.pair_losses(-differences)
        if pairs.probabilities is not None:
            losses = soft_labelled(preferred=losses, other=other, probabilities=pairs.probabilities)
        return torch.where(pairs.tied, 0.5 * (losses + other), losses)

    def each_response(self, context: Context, batch: PreferenceBatch, *, name: str) -> Tensor:
        """[N]: of a whole batch, without gradient."""
        return batch_logprobs(
            context.models, batch, name=name, budget=self.config.budget, collective=context.collective
        )


@dataclass(frozen=True)
class DirectMethod(Generic[ConfigT]):
    """A direct method as a recipe names it: `method(config)` is one that learns."""

    Config: type[ConfigT]
    pair_losses: Callable[[ConfigT, Tensor], Tensor]  # of differences of log-ratios [P], better minus worse -> [P]

    unit: ClassVar[Unit] = "prompt"
    needs: ClassVar[Needs] = DirectAlgorithm.needs
    made: ClassVar[type[DirectAlgorithm[Any]]] = DirectAlgorithm

    @property
    def name(self) -> str:
        return str(self.Config.model_fields["name"].default)

    def __call__(self, config: ConfigT) -> DirectAlgorithm[ConfigT]:
        return DirectAlgorithm(self, config)


def response_logprobs(models: Models, part: PreferencePart, *, name: str = "policy") -> Tensor:
    """[n]: log-probability of each response, the sum over its tokens."""
    rows, owner = part.response_rows()
    logprobs = cast(Processed, models[name](rows)).logprobs
    return sums_by_owner(values=logprobs, owner=owner, num_owners=part.num_candidates)


@torch.no_grad()
def batch_logprobs(models: Models, batch: PreferenceBatch, *, name: str, budget: int, collective: Collective) -> Tensor:
    """[N], without gradient: each process evaluates its share of the batch's parts, and all get the whole."""
    logprobs = torch.zeros(batch.num_candidates, device=batch.pairs.better.device)
    for comparisons in share_of(batch.parts(budget), collective.rank, collective.num_processes):
        part = batch.part(comparisons)
        logprobs[list(part.chosen)] = response_logprobs(models, part, name=name).float()
    collective.sum_(logprobs)
    return logprobs
