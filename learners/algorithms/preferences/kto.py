"""KTO (Ethayarajh et al., 2024, arXiv:2402.01306, eq. 8): a policy from single responses of which each is called
desirable or undesirable; nothing has to be compared with anything.

With r = log pi(y|x) - log ref(y|x), the implicit reward in units of beta, and a baseline z, what a response is worth
falls off on both sides as gains and losses do to people:

  loss = desirable_weight   * (1 - sigmoid(beta * (r - z)))   where y is desirable
         undesirable_weight * (1 - sigmoid(beta * (z - r)))   where it is not

z estimates KL(pi || ref) without sampling: the mean of r over each prompt of the batch with the response of the next
row, at least 0; no gradient goes through it. A batch's comparison holds a row's own response first, and that one after.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss
from rollcall.learners.algorithms.preferences.direct_preference import batch_logprobs, response_logprobs
from rollcall.learners.algorithms.preferences.kto_config import DECLARED, KTOConfig
from rollcall.learners.batches.preference_batch import PreferenceBatch, PreferenceMinibatch, PreferencePart
from rollcall.learners.maths import preference_losses


@dataclass(frozen=True)
class Baselined:
    """A batch of rows, and what does not change while it is learnt from."""

    batch: PreferenceBatch
    reference_logprobs: Tensor  # [N]: of all its responses under the reference
    baseline: Tensor  # []: z


@dataclass(frozen=True)
class BaselinedPart:
    """Some rows of a batch: their own responses alone."""

    part: PreferencePart
    reference_logprobs: Tensor  # [P]
    baseline: Tensor  # []


@dataclass(frozen=True)
class BaselinedMinibatch:
    """What one gradient is computed from."""

    prepared: Baselined
    whole: PreferenceMinibatch
    ends_epoch: bool = True

    def shards(self, rank: int, num_processes: int) -> Iterator[BaselinedPart]:
        for part in self.whole.shards(rank, num_processes):
            pairs = part.pairs
            own = tuple(part.chosen[i] for i in pairs.better.tolist())
            alone = replace(
                part, chosen=own, pairs=replace(pairs, better=torch.arange(len(own), device=pairs.better.device))
            )
            yield BaselinedPart(alone, self.prepared.reference_logprobs[list(own)], self.prepared.baseline)


class KTO:
    """A mean over rows."""

    Config = KTOConfig
    name = "kto"
    unit: Unit = "prompt"
    needs = DECLARED.needs
    unpaired = True  # it learns from labelled rows, and takes comparisons apart

    def __init__(self, config: KTOConfig) -> None:
        self.config = config
        self.beta = config.reward_scale

    def pair_losses(self, differences: Tensor) -> Tensor:
        """[P]: by which held-out pairs are judged: DPO's."""
        return preference_losses.dpo_loss(differences=differences, beta=self.beta)

    @torch.no_grad()
    def prepare(self, context: Context, batch: PreferenceBatch) -> Baselined:
        policy, reference = (
            batch_logprobs(context.models, batch, name=name, budget=self.config.budget, collective=context.collective)
            for name in ("policy", "reference")
        )
        mismatched = (policy - reference)[batch.pairs.worse]
        return Baselined(batch, reference, preference_losses.kto_baseline(mismatched=mismatched))

    def minibatches(self, context: Context, prepared: Baselined) -> Iterator[BaselinedMinibatch]:
        """One: the whole batch."""
        parts = prepared.batch.parts(self.config.budget)
        yield BaselinedMinibatch(prepared, PreferenceMinibatch(prepared.batch, parts))

    def loss(self, context: Context, part: BaselinedPart) -> Loss:
        """The part's share of the batch's mean over rows, and its share of the metrics."""
        pairs, config = part.part.pairs, self.config
        ratios = response_logprobs(context.models, part.part) - part.reference_logprobs
        desirable, weights = pairs.group == 1, pairs.weights[0]
        losses = preference_losses.kto_loss(
            log_ratios=ratios,
            desirable=desirable,
            baseline=part.baseline,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        )
        loss = (weights * losses).sum()
        with torch.no_grad():
            above = (ratios > part.baseline) == desirable
            share = weights.sum()  # of the batch, so that the parts' metrics add up
            metrics = {
                "mean_loss": loss.detach(),
                "implicit_accuracy": (weights * above).sum(),
                "log_ratio_mean": (weights * ratios).sum(),
                "baseline": share * part.baseline,
                "desirable_share": (weights * desirable).sum(),
            }
        return Loss(loss, metrics)


DIRECT_METHOD = KTO
