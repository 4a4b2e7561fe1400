"""Whether something grows, told from samples of it: a slope that teeth, steps and outliers do not bend, against what is
allowed. Pure: knows neither processes nor files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
HOUR_S = 3600.0


@dataclass(frozen=True)
class Allowance:
    """What may come on top while somebody looks: a growth with time, one with the work done, and once an amount of
    what rises and falls (`teeth`), of which a short look may have seen the rise alone."""

    per_hour: float = 0.0
    per_ticket: float = 0.0
    teeth: float = 0.0

    def over(self, *, hours: float, tickets: float) -> float:
        return self.teeth + self.per_hour * hours + self.per_ticket * tickets


@dataclass(frozen=True)
class Growth:
    """Of one thing, after the warm-up."""

    name: str
    first: float  # the median of the first tenth
    last: float  # and of the last
    per_hour: float
    per_ticket: float
    grown: float  # by the steeper of the two lines, over all that was looked at
    allowed: float

    @property
    def met(self) -> bool:
        return self.grown <= self.allowed

    @property
    def share(self) -> float:
        """Of what is allowed."""
        return self.grown / self.allowed if self.allowed else float("inf") if self.grown > 0 else 0.0


def slope(x: Array, y: Array) -> float:
    """The median of the slopes between all pairs of points (Theil, 1950; Sen, 1968): up to 29 % of the points may be
    anything. 0 where all of x is the same."""
    first, second = np.triu_indices(len(x), k=1)
    run = x[second] - x[first]
    apart = run > 0
    if not apart.any():
        return 0.0
    return float(np.median((y[second] - y[first])[apart] / run[apart]))


def growth(
    name: str,
    times_s: Sequence[float],
    tickets: Sequence[float],
    values: Sequence[float],
    allowance: Allowance,
    *,
    warm_up_s: float,
) -> Growth:
    """How much more there is at the end, and whether that is allowed. Samples before `warm_up_s` do not count: caches
    fill, allocators find their size.

    Raises:
      ValueError: fewer than ten samples are left.
    """
    t, k, y = (np.asarray(column, np.float64) for column in (times_s, tickets, values))
    kept = t >= t[0] + warm_up_s if len(t) else np.zeros(0, bool)
    t, k, y = t[kept], k[kept], y[kept]
    if len(t) < 10:
        raise ValueError(f"{name}: {len(t)} samples after a warm-up of {warm_up_s:g} s; ten are the least: look longer")
    tenth = max(1, len(y) // 10)
    per_s, per_ticket = slope(t, y), slope(k, y)
    hours, worked = float(t[-1] - t[0]) / HOUR_S, float(k[-1] - k[0])
    return Growth(
        name,
        first=float(np.median(y[:tenth])),
        last=float(np.median(y[-tenth:])),
        per_hour=per_s * HOUR_S,
        per_ticket=per_ticket,
        grown=max(per_s * HOUR_S * hours, per_ticket * worked),
        allowed=allowance.over(hours=hours, tickets=worked),
    )
