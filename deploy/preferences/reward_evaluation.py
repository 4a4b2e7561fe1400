"""A reward model before comparisons: raw rewards, likelihood, who is right, and how sure. Must never know files, texts
or how the model was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rollcall.deploy.preferences.accuracy import Accuracy, accuracy_of, calibration
from rollcall.learners.algorithms.preferences.bradley_terry import BradleyTerry
from rollcall.learners.batches.preference_batch import collate_comparisons
from rollcall.learners.data.comparisons import RankedCandidates
from rollcall.learners.maths.preference_losses import bradley_terry_nll, sums_by_owner
from rollcall.reward_service.models.reward_models import Statistics

_CHUNK = 256  # comparisons collated at once


@dataclass(frozen=True)
class Judged:
    """What M members make of comparisons with R rows (responses, or steps), N candidates and P pairs in all."""

    rewards: Tensor  # [M, R]: raw
    sums: Tensor  # [M, N]: of each candidate
    num_rows: Tensor  # [N]
    better: Tensor  # int64 [P], of the pairs that are no ties
    worse: Tensor  # int64 [P]
    loss: float  # mean negative log-likelihood of comparisons and members

    def statistics(self) -> Statistics:
        return Statistics.of(self.rewards)

    def differences(self, statistics: Statistics) -> Tensor:
        """[P]: between the scores that a service would give: normalised rewards, summed up, their mean over members."""
        mean, std = torch.tensor(statistics.mean)[:, None], torch.tensor(statistics.std)[:, None]
        scores = ((self.sums - mean * self.num_rows) / std).mean(0)
        return scores[self.better] - scores[self.worse]

    def probabilities(self, *, noise: float) -> Tensor:
        """[P]: that the better one is preferred, the mean over members."""
        raw = self.sums[:, self.better] - self.sums[:, self.worse]
        return (-bradley_terry_nll(differences=raw, noise=noise)).exp().mean(0)


def judge(algorithm: BradleyTerry, module: nn.Module, comparisons: Sequence[RankedCandidates[Any]]) -> Judged:
    """Without gradients, on the device where the module is."""
    device = next(module.parameters()).device
    found: dict[str, list[Tensor]] = {name: [] for name in ("rewards", "sums", "num_rows", "better", "worse")}
    loss, candidates = 0.0, 0
    with torch.no_grad():  # not inference mode: what sharding gathers in it, a later step could not use
        for begin in range(0, len(comparisons), _CHUNK):
            chunk = comparisons[begin : begin + _CHUNK]
            batch = collate_comparisons(chunk).to(device)
            for some in batch.parts(algorithm.config.budget):
                part = batch.part(some)
                inputs, owner = part.reward_inputs()
                rewards: Tensor = module(**inputs).float()
                sums = sums_by_owner(values=rewards, owner=owner, num_owners=part.num_candidates)
                pairs = part.pairs
                # Held-out comparisons count once for every member, whatever its bootstrap sample was.
                share = pairs.weights.mean(0) / pairs.weights.mean(0).sum() * (len(some) / len(comparisons))
                loss += float((share * algorithm.nll(pairs.differences(sums), part)).sum()) / len(sums)
                clear = ~pairs.tied
                found["rewards"].append(rewards.cpu())
                found["sums"].append(sums.cpu())
                found["num_rows"].append(torch.bincount(owner, minlength=part.num_candidates).cpu())
                found["better"].append((pairs.better[clear] + candidates).cpu())
                found["worse"].append((pairs.worse[clear] + candidates).cpu())
                candidates += part.num_candidates
    joined = {name: torch.cat(parts, -1) for name, parts in found.items()}
    return Judged(**joined, loss=loss)


def accuracy_record(judged: Judged, statistics: Statistics) -> tuple[Accuracy | None, dict[str, Any]]:
    """(accuracy, None where all are ties; an evaluation's record)"""
    differences = judged.differences(statistics).tolist()
    if not differences:
        return None, {"mean": None, "std": None, "n": 0, "unit": "pairs right", "eval_loss": judged.loss}
    found = accuracy_of(differences)
    std = (found.accuracy * (1 - found.accuracy)) ** 0.5
    shown = {"mean": found.accuracy, "std": std, "n": found.n, "low": found.low, "high": found.high}
    return found, {**shown, "unit": "pairs right", "eval_loss": judged.loss}


def calibration_record(judged: Judged, *, noise: float) -> dict[str, Any] | None:
    """For the summary and the report's plot; None where all are ties."""
    probabilities = judged.probabilities(noise=noise).tolist()
    if not probabilities:
        return None
    bins, error = calibration(probabilities)
    shown = [
        {"confidence": b.confidence, "frequency": b.frequency, "low": b.low, "high": b.high, "n": b.n} for b in bins
    ]
    return {"expected_calibration_error": error, "n": len(probabilities), "bins": shown}
