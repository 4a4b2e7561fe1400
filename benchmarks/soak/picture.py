"""A soak as one picture: a small chart for each thing that was watched; what grew beyond its bound is red."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.soak.growth import Growth
from benchmarks.soak.samples import Sample

WIDTH, HEIGHT, COLUMNS, PAD = 270, 104, 4, 10
POINTS = 240  # drawn of each


def amount(name: str, value: float) -> str:
    """In the unit of its kind."""
    if not name.startswith(("memory", "shared memory", "data", "disk")):
        return f"{value:,.3g}"
    return f"{value / 1e6:,.3g} MB"


def picture(title: str, samples: Sequence[Sample], grown: Sequence[Growth], *, warm_up_s: float) -> str:
    """An SVG."""
    rows = -(-len(grown) // COLUMNS)
    width, height = COLUMNS * WIDTH + 2 * PAD, rows * HEIGHT + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{PAD}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for index, one in enumerate(grown):
        x, y = PAD + index % COLUMNS * WIDTH, 34 + index // COLUMNS * HEIGHT
        parts.append(f'<g transform="translate({x} {y})">{_panel(samples, one, warm_up_s)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(samples: Sequence[Sample], one: Growth, warm_up_s: float) -> str:
    inner, top, bottom = WIDTH - 20, 32, HEIGHT - 8
    every = max(1, len(samples) // POINTS)
    shown = samples[::every]
    values = [sample.values.get(one.name, 0.0) for sample in shown]
    begin, end = samples[0].at_s, max(samples[-1].at_s, samples[0].at_s + 1e-9)
    highest = max([*values, 1e-9])

    def across(at_s: float) -> float:
        return (at_s - begin) / (end - begin) * inner

    line = " ".join(
        f"{across(sample.at_s):.1f},{bottom - value / highest * (bottom - top):.1f}"
        for sample, value in zip(shown, values, strict=True)
    )
    colour = "#2563eb" if one.met else "#dc2626"
    said = f"{amount(one.name, one.last)}, {amount(one.name, one.per_hour)}/h"
    warm = min(across(begin + warm_up_s), inner)
    return (
        f'<text y="11">{escape(one.name)}</text><text y="24" fill="{colour}">{escape(said)}</text>'
        f'<rect y="{top}" width="{warm:.1f}" height="{bottom - top}" fill="#f1f5f9"/>'
        f'<line y1="{bottom}" y2="{bottom}" x2="{inner}" stroke="#cbd5e1"/>'
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.2"/>'
    )
