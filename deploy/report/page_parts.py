"""What pages of runs are put together from: the frame with its style and its script, figures, rows of tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any


def whole_page(title: str, body: str, charts: Sequence[Mapping[str, Any]]) -> str:
    """One HTML page that asks nothing of the network. `charts`: those that the body's figures show, by their places."""
    # "<" inside the data would let a value close the script element.
    data = json.dumps(list(charts), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = files(__package__).joinpath("report_page.html").read_text(encoding="utf-8")
    page = page.replace("<!--title-->", escape(f"{title} · Rollcall"))
    return page.replace("<!--body-->", body).replace("<!--charts-->", data)


def tile_row(tiles: Sequence[tuple[str | None, str]]) -> str:
    """(a figure, what it is of) side by side; those without a figure are left out."""
    cells = [f'<div class="tile"><b>{escape(v)}</b><span>{escape(t)}</span></div>' for v, t in tiles if v and v != "-"]
    return f'<div class="tiles">{"".join(cells)}</div>'


def figures(charts: Sequence[Mapping[str, Any]], *, first: int = 0, heading: str = "") -> str:
    """Charts in a grid below a heading. `first`: the place of the first chart among all of the page."""
    drawn = "".join(_figure(chart, index) for index, chart in enumerate(charts, start=first))
    return f'<h2>{escape(heading)}</h2><div class="charts">{drawn}</div>' if drawn else ""


def _figure(chart: Mapping[str, Any], index: int) -> str:
    named = [s for s in chart["series"] if not s["faint"]]
    items = []
    if len(named) > 1 or chart["points"]:
        items = [
            f'<span><i style="background:var(--c{(s["colour"] - 1) % 4 + 1})"></i>{escape(s["name"])}</span>'
            for s in named
        ]
    if chart["points"]:
        items.append(f'<span><i style="background:var(--c2)"></i>{escape(str(chart["points_name"]))}</span>')
    if chart.get("note"):
        items.append(f"<span>{escape(chart['note'])}</span>")
    legend = f'<span class="legend">{"".join(items)}</span>' if items else ""
    title = f"{chart['title']}{',' + chart['unit'] if chart['unit'] else ''}"
    wide = ' class="wide"' if chart["wide"] else ""
    return (
        f'<figure{wide} data-chart="{index}"><figcaption>{escape(title)}{legend}</figcaption>'
        f'<svg role="img" aria-label="{escape(title)} over {escape(chart["x_label"])}"></svg>'
        '<div class="tip"></div></figure>'
    )
