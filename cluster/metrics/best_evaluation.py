"""How far an evaluation is below the best one before it, beyond what chance explains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_DEVIATIONS = 3.0  # a loss within so many standard errors is noise: the best of many evaluations is also the luckiest


class BestEvaluation:
    """Remembers the best one."""

    def __init__(self) -> None:
        self._best = -math.inf
        self._variance = 0.0

    def lost(self, record: Mapping[str, Any]) -> float:
        """Of the best one's mean, which this one may be: what is missing, less three standard errors of both. `record`:
        `mean`, `std` and `n` of an evaluation."""
        mean, variance = float(record["mean"]), (record.get("std") or 0.0) ** 2 / max(1, record.get("n") or 1)
        if mean >= self._best:
            self._best, self._variance = mean, variance
            return 0.0
        fallen = self._best - mean - _DEVIATIONS * math.sqrt(variance + self._variance)
        return fallen / abs(self._best) if fallen > 0 and self._best else 0.0
