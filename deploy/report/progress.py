"""Numbers, durations and evaluations in the words of a screen or a page. Plain Python; knows of no run."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from rollcall.deploy.report.counted import BROKEN
from rollcall.deploy.report.recorders import Record, plain

_NAMES = 30  # columns
_LONGEST_LINE = 400  # characters of one text looked at: wider than any terminal


def number(value: Any, digits: int = 1) -> str:
    """3412.7 -> "3,413", 0.031 -> "0.031", None or NaN -> "-"."""
    value = plain(value)
    if not isinstance(value, (int, float)):
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(value: Any) -> str:
    """0.972 -> "97.2 %", None or NaN -> "-"."""
    value = plain(value)
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) else "-"


def one_line(text: Any) -> str:
    """A completion may hold any characters: those that would move the cursor or break the line become spaces."""
    start = str(text)[:_LONGEST_LINE]
    return " ".join("".join(c if c.isprintable() else " " for c in start).split())


def eval_text(record: Record) -> str:
    """A mean over episodes, or the share of problems solved."""
    if record.get("unit") in ("exact match", BROKEN):
        return f"{percent(record.get('mean'))} of {number(record.get('n'))}"
    left = f" ({number(record['unfinished'])} unfinished)" if record.get("unfinished") else ""
    return f"{number(record.get('mean'))} ± {number(record.get('std'))} over {number(record.get('n'))}{left}"


def eval_noun(record: Record) -> str:
    if record.get("unit") == BROKEN:
        return "answers break a principle"
    return "problems" if record.get("unit") == "exact match" else "episodes"


def beside(facts: Mapping[str, str], columns: int | None) -> list[str]:
    """Names and values side by side; a value that is longer than `columns` goes on below itself, from word to word."""
    lines = []
    for name, value in facts.items():
        line = f"{name:<{_NAMES}}{value}"
        fits = columns is None or len(line) <= columns or columns < 2 * _NAMES
        lines += [line] if fits else wrap(line, columns or 0, subsequent_indent=" " * _NAMES, drop_whitespace=True)
    return lines
