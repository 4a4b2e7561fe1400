"""What the direct methods share (DPO, IPO, group-robust DPO): log-probabilities of whole responses under the policy and
the frozen reference, and what is reported of them. This file must never know one method from another.

The implicit reward of a response is log pi(response | prompt) - log ref(response | prompt), in units of beta (Rafailov
et al., 2023, arXiv:2305.18290, eq. 5): a sum over the response's tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rollcall.learners.algorithm import Metrics, Models
from rollcall.learners.batches.preference_batch import PreferenceBatch, PreferenceMinibatch, PreferencePart
from rollcall.learners.batches.preference_experience import EachCandidate
from rollcall.learners.maths.preference_losses import sums_by_owner
from rollcall.learners.maths.sampling import Processed


class DirectMethodConfig(BaseModel):
    """Settings of every direct method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: int = Field(default=16384, ge=1, description="padded tokens of one forward pass: changes no result")


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


def with_reference(models: Models, batch: PreferenceBatch, each_candidate: EachCandidate) -> Referenced:
    """Before the update, without gradients."""
    reference = each_candidate(lambda part: response_logprobs(models, part, name="reference"))
    return Referenced(batch, reference, torch.ones_like(batch.pairs.margins))


def minibatches(prepared: Referenced, budget: int) -> Iterator[ReferencedMinibatch]:
    """One: the whole batch."""
    yield ReferencedMinibatch(prepared, PreferenceMinibatch(prepared.batch, prepared.batch.parts(budget)))


def response_logprobs(models: Models, part: PreferencePart, *, name: str = "policy") -> Tensor:
    """[n]: log-probability of each response, the sum over its tokens."""
    rows, owner = part.response_rows()
    logprobs = cast(Processed, models[name](rows)).logprobs
    return sums_by_owner(values=logprobs, owner=owner, num_owners=part.num_candidates)


def log_ratios(models: Models, referenced: ReferencedPart) -> Tensor:
    """[n]: log pi / ref of each response: its implicit reward in units of beta."""
    return response_logprobs(models, referenced.part) - referenced.reference_logprobs


def judged(pair_losses: Callable[[Tensor], Tensor], differences: Tensor, tied: Tensor) -> Tensor:
    """[P]: the pairs' losses, that of a tie the mean of both answers'."""
    losses = pair_losses(differences)
    return torch.where(tied, 0.5 * (losses + pair_losses(-differences)), losses)


def weighed_loss(
    losses: Tensor, differences: Tensor, ratios: Tensor, referenced: ReferencedPart, *, beta: float
) -> tuple[Tensor, Metrics]:
    """The part's share of the batch's mean over comparisons, and its share of the metrics.

    Args:
      losses, differences: [P]: of the pairs; the latter log-ratios.
      ratios: [n]: log-ratios of the responses.
      beta: makes implicit rewards of log-ratios.
    """
    pairs = referenced.part.pairs
    weights = pairs.weights[0]
    loss = (weights * referenced.pair_scale * losses).sum()
    with torch.no_grad():
        right = torch.where(pairs.tied, torch.zeros_like(differences), differences.sign()) / 2 + 0.5
        responses = referenced.part.batch.num_candidates
        return loss, {
            "mean_loss": (weights * losses).sum(),
            "implicit_accuracy": (weights * right).sum(),
            "implicit_margin": beta * (weights * differences).sum(),
            # Of the data's responses, not of the policy's own: how far their log-probabilities have moved.
            "log_ratio_mean": ratios.sum() / responses,
            "better_log_ratio": (weights * ratios[pairs.better]).sum(),
            "worse_log_ratio": (weights * ratios[pairs.worse]).sum(),
        }
