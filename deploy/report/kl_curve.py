"""The curve of a gamed reward (Gao et al., 2023, arXiv:2210.10760): what is learnt from and what is meant, over how far
the policy is from its reference. Plain Python over metrics.jsonl."""

from __future__ import annotations

import math
from typing import Any

from rollcall.deploy.report.curves import Records

MAX_BINS = 60


def kl_curve(records: Records) -> list[dict[str, Any]]:
    """One chart, or none where a run has no reference, or learns from the task's own reward. Over the square root of
    the KL of a whole completion: the gains of both rewards since the first steps, in standard deviations of those.
    Steps of like KL are one point, their mean."""
    points = sorted(point for record in records if (point := _point(record)) is not None)
    if len(points) < 2:
        return []
    size = math.ceil(len(points) / MAX_BINS)
    bins = [points[begin : begin + size] for begin in range(0, len(points), size)]
    x, reward, task = ([round(sum(p[i] for p in near) / len(near), 5) for near in bins] for i in range(3))
    lines = [("reward learnt from (proxy)", reward), ("the task's own (truth)", task)]
    return [
        {
            "title": "Proxy and truth over KL: gain since the first steps",
            "unit": " deviations",
            "x": x,
            "x_label": "square root of the KL to the reference, nats a completion",
            "series": [{"name": name, "y": y, "colour": i, "faint": False} for i, (name, y) in enumerate(lines, 1)],
            **{"points": [], "stack": False, "zero": False, "wide": True, "spread": ""},
        }
    ]


def _point(record: dict[str, Any]) -> tuple[float, float, float] | None:
    """(sqrt KL, gain of the reward, gain of the task's)."""
    values = [record.get(key) for key in ("kl_reference", "length_mean", "reward_gain", "task_gain")]
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    if len(numbers) < len(values):
        return None
    kl, length, reward, task = numbers
    return math.sqrt(max(0.0, kl) * length), reward, task
