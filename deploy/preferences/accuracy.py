"""How right predictions of preferences are, and whether they know it: accuracy with its interval, calibration. Plain
arithmetic over lists; must never know where the predictions come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_Z = 1.959964  # the normal distribution's 97.5% quantile


@dataclass(frozen=True)
class Accuracy:
    """The share that is right, with Wilson's 95% interval (Wilson, 1927)."""

    accuracy: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "low": self.low, "high": self.high, "n": self.n}


def accuracy_of(differences: Sequence[float]) -> Accuracy:
    """Of predicted differences, better minus worse: right where above 0; exactly 0 is a guess, and counts half.

    Raises:
      ValueError: when there is none.
    """
    n = len(differences)
    if not n:
        raise ValueError("differences is empty: there is nothing to be right about")
    right = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences)
    share = right / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    return Accuracy(share, max(0.0, centre - half), min(1.0, centre + half), n)


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions whose confidence lies in one stretch of [0.5, 1]."""

    confidence: float  # mean of theirs
    frequency: float  # how many were right
    low: float  # 95% interval of the frequency
    high: float
    n: int


def calibration(probabilities: Sequence[float], *, num_bins: int = 10) -> tuple[list[CalibrationBin], float]:
    """Bins that are not empty, and the expected calibration error: the mean over predictions of their bin's
    |confidence - frequency| (Naeini et al., 2015; Guo et al., 2017, arXiv:1706.04599).

    Args:
      probabilities: that the one preferred is preferred. Which of a pair comes first is arbitrary, so a prediction p
        below one half is the confidence 1 - p in the other answer, and wrong.
    """
    bins: list[list[float]] = [[] for _ in range(num_bins)]
    for p in probabilities:
        confidence = max(p, 1.0 - p)
        place = min(num_bins - 1, max(0, math.ceil((confidence - 0.5) * 2 * num_bins) - 1))
        bins[place].append(p)
    made, error = [], 0.0
    for members in bins:
        if not members:
            continue
        confidence = sum(max(p, 1.0 - p) for p in members) / len(members)
        found = accuracy_of([p - 0.5 for p in members])
        made.append(CalibrationBin(confidence, found.accuracy, found.low, found.high, found.n))
        error += len(members) / len(probabilities) * abs(confidence - found.accuracy)
    return made, error
