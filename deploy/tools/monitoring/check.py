"""Asks a Prometheus everything that the shipped dashboards and rules ask: does each question parse, and does it have an
answer, or a reason to have none?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.metrics.table import DRIVER, STEPPED, TRAINING, Metric
from rollcall.deploy.tools.monitoring.metric_names import External, names_in, rules, samples, shipped
from rollcall.deploy.tools.monitoring.prometheus_server import Prometheus

# What Grafana puts in, for a page that shows everything of the last minutes.
_CHOICES = {
    "run": ".+",
    "policy": ".+",
    "service": ".+",
    "__rate_interval": "1m",
    "__range": "15m",
}
# Of a metric's `when`: what is so once it has happened.
_HAPPENED = {
    STEPPED: 'rollcall_learner_steps_total{outcome="done"} > 0',
    TRAINING: 'rollcall_run_state{outcome=~"training|evaluating"} == 1',
}
_NO_SERVICE = "no reward service is scraped"
_NOBODY = "neither a run nor a reward service is scraped"
_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)\}")
_COMPARES = re.compile(r"[<>]|[=!]=")  # outside of label matchers: then no answer may mean that it is not so
_OF_DRIVERS = frozenset(name for metric in DRIVER for name in metric.samples)
_LABEL_VALUES = re.compile(r"label_values\((.*),\s*(\w+)\)")


@dataclass(frozen=True, slots=True)
class Question:
    where: str  # "Run overview / Policy lag", "alert RollcallDiskLow"
    expression: str


@dataclass(frozen=True, slots=True)
class Finding:
    """`verdict`: it has data; it has none, for this reason; it fails."""

    question: Question
    verdict: Literal["data", "empty", "fails"]
    text: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<6}{self.question.where}: {self.text or self.question.expression}"


def dashboards() -> Mapping[str, Mapping[str, Any]]:
    """The shipped dashboards, by the name of their file."""
    folder = shipped("grafana", "dashboards")
    found = sorted((item for item in folder.iterdir() if item.name.endswith(".json")), key=lambda item: item.name)
    return {item.name: json.loads(item.read_text(encoding="utf-8")) for item in found}


def questions() -> Iterator[Question]:
    """Every query of every dashboard (panels, marks, choices) and of every rule."""
    for dashboard in dashboards().values():
        title = dashboard["title"]
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield Question(f"{title} / {panel['title']}", filled_in(target["expr"]))
        for mark in dashboard["annotations"]["list"]:
            yield Question(f"{title} / marks: {mark['name']}", filled_in(mark["expr"]))
        for variable in dashboard["templating"]["list"]:
            parts = _LABEL_VALUES.fullmatch(variable.get("definition", ""))
            if parts is not None:
                yield Question(
                    f"{title} / choice: {variable['name']}", f"count by ({parts[2]}) ({filled_in(parts[1])})"
                )
    for rule in rules():
        kind = "alert" if "alert" in rule else "record"
        yield Question(f"{kind} {rule[kind]}", " ".join(str(rule["expr"]).split()))


def filled_in(expression: str) -> str:
    """A panel's query as Grafana sends it."""
    return _VARIABLE.sub(lambda found: _CHOICES[found[1] or found[2]], expression)


class Check:
    """Of one Prometheus, at one moment."""

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus
        self._kinds = {series["metric"].get("kind") for series in prometheus.query("rollcall_run_info")}
        self._services = bool(prometheus.query('up{role="reward_service"} == 1'))
        self._ray = bool(prometheus.query('up{job="ray"} == 1'))
        self._anybody = bool(self._kinds) or self._services
        self._present: dict[str, bool] = {}

    def findings(self) -> list[Finding]:
        return [*map(self._ask, questions()), *self._rules_that_fail()]

    def _ask(self, question: Question) -> Finding:
        try:
            if self._prometheus.query(question.expression):
                return Finding(question, "data")
        except RollcallError as error:
            return Finding(question, "fails", f"{error} in {question.expression}")
        absent = sorted(name for name in names_in(question.expression) if not self._has(name))
        reasons = [self._why(name) for name in absent]
        if None in reasons:
            unexplained = absent[reasons.index(None)]
            return Finding(question, "fails", f"{unexplained} has no sample, and nothing says why")
        if reasons:
            return Finding(question, "empty", "; ".join(dict.fromkeys(str(reason) for reason in reasons)))
        if 'role="reward_service"' in question.expression and not self._services:
            return Finding(question, "empty", _NO_SERVICE)
        if question.where.startswith("alert "):
            return Finding(question, "empty", "silent: its condition holds nowhere")
        if _COMPARES.search(re.sub(r'\{[^{}]*\}|"[^"]*"', "", question.expression)):
            return Finding(question, "empty", "its condition holds nowhere now")
        if not self._anybody:
            return Finding(question, "empty", _NOBODY)
        return Finding(question, "fails", f"its metrics are there, but it has no answer: {question.expression}")

    def _has(self, name: str) -> bool:
        if name not in self._present:
            self._present[name] = bool(self._prometheus.query(f"count({name})"))
        return self._present[name]

    def _why(self, name: str) -> str | None:
        """Why a metric may have no sample; None: it should have one."""
        known = samples().get(name)
        if isinstance(known, str):  # a recording rule: for the reasons of what it is made of
            reasons = [self._why(part) for part in sorted(names_in(known)) if not self._has(part)]
            return None if None in reasons or not reasons else "; ".join(str(reason) for reason in reasons)
        if isinstance(known, External):
            if known.server == "Ray" and not self._ray:
                return "no Ray cluster with metrics is joined"
            if not self._anybody:
                return _NOBODY
            return f"{name} comes with {known.when}" if known.when else None
        if not isinstance(known, Metric):
            return None
        if name not in _OF_DRIVERS and not self._services:
            return _NO_SERVICE
        if name in _OF_DRIVERS and not self._kinds:
            return "no run is scraped"
        if known.runs != "either" and known.runs not in self._kinds:
            return f"no {known.runs} run is scraped"
        if not known.when or self._has_happened(known):
            return None
        return f"{name} comes with {known.when}"

    def _has_happened(self, metric: Metric) -> bool:
        kind = ".+" if metric.runs == "either" else metric.runs
        condition = _HAPPENED.get(metric.when)
        if condition is None:
            return False  # nobody can tell
        return bool(self._prometheus.query(f'{condition} and on (run) rollcall_run_info{{kind=~"{kind}"}}'))

    def _rules_that_fail(self) -> Iterator[Finding]:
        """What Prometheus itself says of the rules that it has loaded."""
        loaded: dict[str, Any] = {}
        for group in self._prometheus.ask("rules")["groups"]:
            loaded |= {rule["name"]: rule for rule in group["rules"]}
        for rule in rules():
            name = rule.get("alert") or rule["record"]
            question = Question(f"rule {name}", str(rule["expr"]))
            if name not in loaded:
                yield Finding(question, "fails", "is not loaded")
            elif loaded[name].get("lastError"):
                yield Finding(question, "fails", loaded[name]["lastError"])
