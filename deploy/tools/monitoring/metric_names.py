"""Every name that rules and dashboards may ask Prometheus for: the driver's, the reward service's, the recording rules'
and what comes from others; and which of them a query asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from rollcall.cluster.metrics.table import DRIVER, Metric
from rollcall.reward_service.service.metrics import SERVICE

# Label matchers and strings, ranges, and the label lists of aggregations and matchings hold no metrics.
_NOT_METRICS = re.compile(
    r"""\{[^{}]*\}|"[^"]*"|'[^']*'|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)"""
)
_NAME = re.compile(r"(?<![\w.])[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w)(?!\s*\()")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})


@dataclass(frozen=True, slots=True)
class External:
    """A metric that is not ours."""

    name: str
    unit: str
    text: str
    server: str
    when: str = ""


EXTERNAL = (
    External("up", "0 or 1", "Whether a target answered its last scrape", "Prometheus"),
    External("ALERTS", "1", "Alerts that are pending or firing", "Prometheus", "an alert's condition holds"),
    External("process_resident_memory_bytes", "bytes", "Memory of a process", "driver, reward service"),
    External("ray_node_cpu_utilization", "percent", "CPU in use on a node", "Ray"),
    External("ray_node_mem_used", "bytes", "Memory in use on a node", "Ray"),
    External("ray_node_mem_total", "bytes", "Memory of a node", "Ray"),
    External("ray_object_store_memory", "bytes", "Object store, by where objects lie", "Ray"),
    External("ray_resources", "resources", "Logical resources, by kind and state", "Ray"),
    External("ray_actors", "actors", "Ray actors, by state", "Ray", "a first actor"),
    External("ray_node_gpus_utilization", "percent", "Of each GPU", "Ray", "a node with a GPU"),
)


def shipped(*path: str) -> Any:
    """A file or folder that is installed with this package: prometheus/..., grafana/..."""
    return files("rollcall.deploy").joinpath(*path)


def rule_files() -> Mapping[str, Mapping[str, Any]]:
    """The shipped rules, by the name of their file."""
    folder = shipped("prometheus", "rules")
    found = sorted((item for item in folder.iterdir() if item.name.endswith(".yml")), key=lambda item: item.name)
    return {item.name: yaml.safe_load(item.read_text(encoding="utf-8")) for item in found}


def rules() -> Iterator[Mapping[str, Any]]:
    """Every rule: with `alert` or `record`, and `expr`."""
    for content in rule_files().values():
        for group in content["groups"]:
            yield from group["rules"]


@cache
def samples() -> Mapping[str, Metric | External | str]:
    """By the name that a query uses: what it is; for a recording rule, its expression."""
    known: dict[str, Metric | External | str] = {}
    for metric in (*DRIVER, *SERVICE):
        known |= dict.fromkeys(metric.samples, metric)
    known |= {item.name: item for item in EXTERNAL}
    return known | {rule["record"]: str(rule["expr"]) for rule in rules() if "record" in rule}


def names_in(expression: str) -> set[str]:
    """The metrics that a query asks for."""
    bare, before = expression, ""
    while bare != before:
        before, bare = bare, _NOT_METRICS.sub(" ", bare)
    return {name for name in _NAME.findall(bare) if name.lower() not in _WORDS}
