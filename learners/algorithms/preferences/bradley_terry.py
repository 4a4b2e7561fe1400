"""Reward models from comparisons, by maximum likelihood of who was preferred (Bradley and Terry, 1952): of responses
(Ouyang et al., 2022, arXiv:2203.02155) and of segments (Christiano et al., 2017, arXiv:1706.03741), with one loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.algorithm import Context, Loss, Models
from rollcall.learners.algorithms.preferences.bradley_terry_config import DECLARED, BradleyTerryConfig
from rollcall.learners.batches.preference_batch import PreferenceBatch, PreferenceMinibatch, PreferencePart
from rollcall.learners.maths import preference_losses


class BradleyTerry:
    """`models["reward"]` gives rewards [M, R] of M ensemble members for R rows: one a response, or one a step, whose
    sum over a segment is the segment's. Members are trained side by side, each on its own bootstrap sample."""

    Config = BradleyTerryConfig
    name = "bradley_terry"
    unit: Unit = "prompt"
    needs = DECLARED.needs

    def __init__(self, config: BradleyTerryConfig) -> None:
        self.config = config

    def prepare(self, context: Context, batch: PreferenceBatch) -> PreferenceBatch:
        return batch

    def minibatches(self, context: Context, prepared: PreferenceBatch) -> Iterator[PreferenceMinibatch]:
        yield PreferenceMinibatch(prepared, prepared.parts(self.config.budget))

    def loss(self, context: Context, part: PreferencePart) -> Loss:
        """The sum over members; the metrics are means over them."""
        pairs, rewards = part.pairs, candidate_rewards(context.models, part)
        differences = pairs.differences(rewards)
        loss = (pairs.weights * self.nll(differences, part)).sum()
        share = pairs.weights[0] if len(pairs.weights) == 1 else pairs.weights.mean(0)
        with torch.no_grad():
            members = len(rewards)
            metrics = {
                "negative_log_likelihood": loss.detach() / members,
                "accuracy": _share_right(differences, pairs.weights, pairs.tied) / members,
                "margin": (share * differences.mean(0)).sum(),
                "reward_mean": rewards.mean(0).sum() / part.batch.num_candidates,
            }
        return Loss(loss, metrics)

    def nll(self, differences: Tensor, part: PreferencePart) -> Tensor:
        """Of each member and pair [M, P]."""
        probabilities, preferred = part.pairs.probabilities, self._answered(differences, part)
        if probabilities is None:
            return preferred
        other = self._answered(-differences, part)  # a soft label has no margin, and a tie is the same from both sides
        return preference_losses.soft_labelled(preferred=preferred, other=other, probabilities=probabilities)

    def _answered(self, differences: Tensor, part: PreferencePart) -> Tensor:
        """Where the better one is preferred."""
        config, pairs = self.config, part.pairs
        margins = pairs.margins if config.use_margins else None
        if config.ties == "rao_kupper":
            return preference_losses.rao_kupper_nll(
                differences=differences, tied=pairs.tied, threshold=config.tie_threshold, margins=margins
            )
        preferred = preference_losses.bradley_terry_nll(
            differences=differences, margins=margins, label_smoothing=config.label_smoothing, noise=config.noise
        )
        tie = preference_losses.half_tie_nll(differences=differences, noise=config.noise)
        return torch.where(pairs.tied, tie, preferred)


def candidate_rewards(models: Models, part: PreferencePart) -> Tensor:
    """[M, n]: each member's reward of each of a part's n candidates, raw."""
    inputs, owner = part.reward_inputs()
    rows: Tensor = models["reward"](**inputs)[..., : len(owner)]
    return preference_losses.sums_by_owner(values=rows.float(), owner=owner, num_owners=part.num_candidates)


def _share_right(differences: Tensor, weights: Tensor, tied: Tensor) -> Tensor:
    """A tie has no right answer: its weight counts half, as a guess would, and so does a difference of exactly 0."""
    right = torch.where(tied, torch.zeros_like(differences), differences.sign()) / 2 + 0.5
    return (weights * right).sum()
