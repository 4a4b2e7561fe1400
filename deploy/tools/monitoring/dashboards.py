"""Grafana's JSON from a few plain records: queries, panels, rows, dashboards. Lays panels out, left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

COLUMNS = 24
SCHEMA_VERSION = 39  # of Grafana 10.4; newer ones read it and bring it up to date
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Kind = Literal["timeseries", "stat", "gauge", "table"]
Threshold = tuple[float | None, str]  # from this value on (None: from anywhere), this colour

PLAIN: tuple[Threshold, ...] = ((None, "blue"),)


def alarm(*, warn: float, bad: float) -> tuple[Threshold, ...]:
    """The more, the worse; the other way round where `bad` is below `warn`."""
    if bad < warn:
        return ((None, "red"), (bad, "yellow"), (warn, "green"))
    return ((None, "green"), (warn, "yellow"), (bad, "red"))


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str  # Grafana's: {{label}} is a series' label


@dataclass(frozen=True)
class Panel:
    """`unit` is one of Grafana's. `about` says what the panel shows, and what to think of it."""

    title: str
    about: str
    unit: str
    queries: Sequence[Query]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    thresholds: tuple[Threshold, ...] = PLAIN
    stacked: bool = False
    least: float | None = None
    most: float | None = None
    names: bool = False  # a stat that shows what its series is called
    decimals: int | None = None


def stat(title: str, about: str, unit: str, queries: Sequence[Query], *, width: int = 3, **more: Any) -> Panel:
    """A number on the first line of a page."""
    return Panel(title, about, unit, queries, kind="stat", width=width, height=4, **more)


def share(title: str, about: str, queries: Sequence[Query], **more: Any) -> Panel:
    """A part of a whole, from none to all of it."""
    return Panel(title, about, "percentunit", queries, least=0, most=1, **more)


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of the page, from the values of a label."""

    name: str
    label: str
    query: str


@dataclass(frozen=True)
class Annotation:
    """Marks in every graph. `at_value`: the query's value is the moment, in milliseconds."""

    name: str
    expr: str
    title: str
    colour: str
    at_value: bool = True


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    about: str
    variables: Sequence[Variable]
    annotations: Sequence[Annotation]
    rows: Sequence[Row]

    def json(self) -> dict[str, Any]:
        """As Grafana imports it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": ["rollcall"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,  # one crosshair for all panels
            "time": {"from": "now-1h", "to": "now"},
            "refresh": "10s",
            "timezone": "",
            "links": [
                {
                    "title": "Rollcall",
                    "type": "dashboards",
                    "tags": ["rollcall"],
                    "asDropdown": True,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "templating": {"list": [_datasource(), *(_variable(item) for item in self.variables)]},
            "annotations": {"list": [_annotation(item) for item in self.annotations]},
            "panels": _laid_out(self.rows),
        }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
    }


def _variable(item: Variable) -> dict[str, Any]:
    return {
        "name": item.name,
        "label": item.label,
        "type": "query",
        "datasource": _SOURCE,
        "definition": item.query,
        "query": {"query": item.query, "refId": item.name},
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "regex": "",
    }


def _annotation(item: Annotation) -> dict[str, Any]:
    return {
        "name": item.name,
        "datasource": _SOURCE,
        "enable": True,
        "hide": False,
        "expr": item.expr,
        "step": "15s",
        "titleFormat": item.title,
        "textFormat": "{{run}}",
        "tagKeys": "run",
        "iconColor": item.colour,
        "useValueForTime": item.at_value,
    }


def _laid_out(rows: Sequence[Row]) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        position = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": position,
                "panels": [],
            }
        )
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            panels.append(_panel(panel, len(panels) + 1, {"h": panel.height, "w": panel.width, "x": x, "y": y}))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return panels


def _panel(panel: Panel, number: int, position: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "gridPos": position,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "instant": panel.kind in ("stat", "gauge", "table"),
                "range": panel.kind == "timeseries",
                "format": "table" if panel.kind == "table" else "time_series",
            }
            for index, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in panel.thresholds],
        },
    }
    limits = {"min": panel.least, "max": panel.most, "decimals": panel.decimals}
    defaults |= {key: value for key, value in limits.items() if value is not None}
    if panel.kind == "timeseries":
        marked = panel.thresholds != PLAIN and not panel.stacked
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stacked else 5,
            "showPoints": "never",
            "spanNulls": 60_000,  # a lost scrape leaves no gap, a pause does
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if marked else "off"},
        }
    return defaults


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    options: dict[str, Any] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "auto",
    }
    if panel.kind == "stat":
        options |= {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "textMode": "name" if panel.names else "auto",
        }
    return options
