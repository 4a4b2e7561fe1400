"""A comparison as files: a page in the looks of a run's report, and its curves as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import write_aside
from rollcall.deploy.overview.comparison import INTERVAL, Comparison, Curve
from rollcall.deploy.overview.grouping import setting_text
from rollcall.deploy.report.page_parts import figures, tile_row, whole_page
from rollcall.deploy.report.progress import duration, number, percent

CSV_COLUMNS = ("metric", "axis", "group", "x", "mean", "low", "high", "seeds")


def write_page(found: Comparison, path: Path) -> Path:
    """Raises BadInput: where it cannot be written."""
    names = [run.name for group in found.groups for run in group.runs]
    several = len(found.groups) > 1
    body = [
        f'<header><div class="row"><h1>Comparison of {len(names)} runs</h1></div>'
        f"<p>{escape(f'{len(found.groups)} groups of seeds' if several else 'seeds of one configuration')} · "
        f"intervals and bands: {INTERVAL}</p></header>",
        tile_row([(found.score_text(index), group.label) for index, group in enumerate(found.groups)]),
        "<h2>Runs</h2>",
        _runs(found),
        _differing(found) if several else "",
    ]
    charts: list[dict[str, Any]] = []
    for label in dict.fromkeys(curve.axis.label for curve in found.curves):
        own = [_chart(found, curve) for curve in found.curves if curve.axis.label == label]
        body.append(figures(own, first=len(charts), heading=f"Over {label}"))
        charts += own
    if not charts:
        body.append("<h2>Curves</h2><p>No learner step was recorded that all seeds of a group have.</p>")
    body.append(f"<footer>{escape(' '.join(['rollcall compare', *names]))}</footer>")
    return _written(path, whole_page("Comparison", "\n".join(body), charts).encode(errors="replace"))


def write_csv(found: Comparison, path: Path) -> Path:
    """One line for each place of each curve of each group: CSV_COLUMNS.

    Raises:
      BadInput: where it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for curve in found.curves:
        for index, own in curve.by_group.items():
            label = found.groups[index].label
            for x, mean in zip(own.x, own.means, strict=True):
                low, high = ("" if side is None else f"{side:.8g}" for side in (mean.low, mean.high))
                writer.writerow(
                    (_metric(curve), curve.axis.key, label, f"{x:.8g}", f"{mean.mean:.8g}", low, high, mean.n)
                )
    return _written(path, text.getvalue().encode())


def _metric(curve: Curve) -> str:
    return "evaluation" if curve.key == "mean" else curve.key


def _chart(found: Comparison, curve: Curve) -> dict[str, Any]:
    """In the words of the page's script. Every group has a line, at its own places; the others are null there."""
    x = sorted({place for own in curve.by_group.values() for place in own.x})
    series, bands = [], []
    for index, own in curve.by_group.items():
        colour = index + 1
        at = dict(zip(own.x, own.means, strict=True))
        lines = [_between(x, at, side) for side in ("mean", "low", "high")]
        series.append({"name": found.groups[index].label, "y": lines[0], "colour": colour, "faint": False})
        if any(mean.low is not None for mean in own.means):
            bands.append({"low": lines[1], "high": lines[2], "colour": colour})
    return {
        **{"title": curve.title, "x": x, "unit": "", "series": series, "bands": bands, "points": []},
        **{"stack": False, "zero": False, "wide": curve.key == "mean", "spread": "", "x_label": curve.axis.label},
    }


def _between(x: Sequence[float], at: Mapping[float, Any], side: str) -> list[float | None]:
    """A group's values at the places of all groups: between its own on the straight line, beyond them none."""
    own = sorted(at)
    values: list[float | None] = []
    after = 0
    for place in x:
        while after < len(own) and own[after] < place:
            after += 1
        if after < len(own) and own[after] == place:
            value = getattr(at[place], side)
        elif 0 < after < len(own):
            left, right = own[after - 1], own[after]
            low, high = getattr(at[left], side), getattr(at[right], side)
            share = (place - left) / (right - left)
            value = None if low is None or high is None else low + share * (high - low)
        else:
            value = None
        values.append(None if value is None else float(f"{value:.6g}"))
    return values


def _runs(found: Comparison) -> str:
    rows = []
    for group in found.groups:
        for run in group.runs:
            score = percent(run.score) if found.is_share else number(run.score)
            wall = run.summary.get("wall_s", run.last.get("elapsed_s"))
            took = duration(float(wall)) if wall is not None else "-"
            cells = (score, number(run.learner_steps), number(run.experience), took)
            rows.append(
                f"<tr><td>{escape(group.label)}</td><td>{escape(run.name)}</td><td class=n>{escape(str(run.seed))}</td>"
                f"<td>{escape(run.status)}</td>{''.join(f'<td class=n>{escape(cell)}</td>' for cell in cells)}"
                f"<td>{escape(run.machine)}</td></tr>"
            )
    units = next((run.counts.units for group in found.groups for run in group.runs), "")
    heads = ("group", "run", "seed", "status", "score", "learner steps", units, "time", "machine")
    head = "".join(f"<td>{escape(name)}</td>" for name in heads)
    return f'<div class="card"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _differing(found: Comparison) -> str:
    head = "".join(f"<td>{escape(group.label)}</td>" for group in found.groups)
    rows = [
        f"<tr><th>{escape(key)}</th>{''.join(f'<td>{escape(setting_text(value))}</td>' for value in values)}</tr>"
        for key, values in found.differing.items()
    ]
    return (
        f'<h2>Settings that differ</h2><div class="card"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _written(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, content)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from None
    return path
