"""Which charts of a run are worth a place: those that say nothing, or what another one says, are left out and named;
what only the first steps do to a chart of time is cut off. Plain Python over what curves.py makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollcall.cluster.metrics.names import GROUPS, Group
from rollcall.deploy.report.progress import duration, number

Chart = Mapping[str, Any]

_NOTHING = 1e-7  # the rounding of a float32 around zero
_FEWEST = 3  # values of which one may say that they do not change
_SAME = 1e-6  # relative: as far as two numbers of one thing may differ by rounding
_FIRST_PART, _MOST_FIRST = 20, 10  # a start is the first twentieth, of at most so many points
_SPIKE = 2.0  # times what comes after


@dataclass(frozen=True)
class Choice:
    """The charts of each group, in the order worth reading, and why others are not there."""

    groups: Mapping[Group, Sequence[dict[str, Any]]]
    left_out: Sequence[str] = ()


def chosen(charts: Sequence[Chart]) -> Choice:
    groups: dict[Group, list[dict[str, Any]]] = {group: [] for group in GROUPS}
    left_out: list[str] = []
    seen: list[tuple[str, list[float | None]]] = []
    for chart in charts:
        lines = [line["y"] for line in chart["series"] if not line["faint"]]
        raw = chart["series"][0]["y"] if chart["series"] else []
        if not chart["points"] and (value := _throughout(chart)) is not None:
            left_out.append(f"{chart['title']}: {value} throughout")
            continue
        twin = next((title for title, other in seen if len(lines) == 1 and _alike(raw, other)), None)
        if twin is not None and not chart["points"]:
            left_out.append(f"{chart['title']}: as {twin}")
            continue
        if len(lines) == 1:
            seen.append((chart["title"], raw))
        groups[chart.get("group", "learning")].append(_without_the_start(chart))
    return Choice(groups, left_out)


def _throughout(chart: Chart) -> str | None:
    """What each line stays at, where all of them do. Of two values nothing is said."""
    shown = []
    for line in chart["series"]:
        values = [value for value in line["y"] if value is not None]
        if len(values) < _FEWEST:
            return None
        if max(map(abs, values)) < _NOTHING:
            value = "0"
        elif max(values) == min(values):
            value = f"{number(values[0], 2)}{chart['unit']}"
        else:
            return None
        if not line["faint"]:
            shown.append((line["name"], value))
    if len(shown) == 1 or len({value for _, value in shown}) == 1:
        return shown[0][1]
    return ", ".join(f"{name} {value}" for name, value in shown) or None


def _alike(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    if len(one) != len(other) or len(one) < _FEWEST:
        return False
    return all(
        a is b is None or (a is not None and b is not None and abs(a - b) <= _SAME * max(abs(a), abs(b), _NOTHING))
        for a, b in zip(one, other, strict=True)
    )


def _without_the_start(chart: Chart) -> dict[str, Any]:
    """Compiling, and first requests, take so long that nothing else can be told apart in a chart of time."""
    columns = [line["y"] for line in chart["series"]]
    if chart.get("group") not in ("time", "engine") or not columns:
        return dict(chart)
    if chart["stack"]:
        heights = [sum(value or 0.0 for value in at) for at in zip(*columns, strict=True)]
    else:
        heights = [
            max((abs(value) for value in at if value is not None), default=0.0) for at in zip(*columns, strict=True)
        ]
    first = min(_MOST_FIRST, max(1, len(heights) // _FIRST_PART))
    start, rest = heights[:first], heights[first:]
    if len(rest) < 5 or max(start) <= _SPIKE * max(rest) or max(rest) == 0.0:
        return dict(chart)
    highest = max(start)
    shown = duration(highest / 1000) if chart["unit"] == " ms" else f"{number(highest)}{chart['unit']}"
    return {**chart, "top": 1.1 * max(rest), "note": f"the start, up to {shown}, is cut off"}
