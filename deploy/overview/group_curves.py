"""Curves of several seeds as one: each run's own, smoothed, at places that all of them have reached; their mean, and
the 95 % interval of the mean. Plain Python: no numpy."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollcall.deploy.overview.statistics import Mean, mean_of

PLACES = 200  # at which a curve is given
_SMOOTH = 40  # a moving average over a twentieth of the run: so many parts to either side of a point

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Axis:
    """What curves are drawn over: the key of metrics.jsonl, and what it is called."""

    key: str
    label: str
    shift: int = 0  # a record of step v is written after v + 1 steps


STEPS = Axis("step", "learner steps", shift=1)
TIME = Axis("elapsed_s", "seconds of training")


@dataclass(frozen=True)
class GroupCurve:
    """Means of a group at places of an axis."""

    x: Sequence[float]
    means: Sequence[Mean]


def group_curve(runs: Sequence[Records], key: str, axis: Axis, *, smooth: bool = True) -> GroupCurve | None:
    """From where the last of the runs begins to report to where the first one ends: beyond, a mean would jump as runs
    leave it. None where a run never reports it, or there is no such place."""
    curves = []
    for records in runs:
        points = points_of(records, key, axis)
        if not points:
            return None
        x, y = [at for at, _ in points], [value for _, value in points]
        curves.append((x, _smoothed(y) if smooth else y))
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if begin > end:
        return None
    count = min(PLACES, max(len(x) for x, _ in curves))
    places = [begin] if begin == end else [begin + (end - begin) * i / max(1, count - 1) for i in range(count)]
    means = [mean_of([_at(place, x, y) for x, y in curves]) for place in places]
    return GroupCurve(places, [mean for mean in means if mean is not None])


def points_of(records: Records, key: str, axis: Axis) -> list[tuple[float, float]]:
    """(place, value) wherever a run has both, the places growing: what a restore took back is not there."""
    points: list[tuple[float, float]] = []
    for record in records:
        at, value = _finite(record.get(axis.key)), _finite(record.get(key))
        if at is None or value is None:
            continue
        while points and points[-1][0] >= at + axis.shift:
            points.pop()
        points.append((at + axis.shift, value))
    return points


def _at(place: float, x: Sequence[float], y: Sequence[float]) -> float:
    """Between two points on the straight line through them."""
    after = bisect_right(x, place)
    if after == 0:
        return y[0]
    if after == len(x):
        return y[-1]
    share = (place - x[after - 1]) / (x[after] - x[after - 1])
    return y[after - 1] + share * (y[after] - y[after - 1])


def _smoothed(values: Sequence[float]) -> list[float]:
    reach = len(values) // _SMOOTH
    if not reach:
        return list(values)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = ((max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values)))
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
