"""The alert rules: each asks for metrics and labels that exist, is explained in the runbook, and is shown by promtool
to fire in its case and to be silent in a sound run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollcall.cluster.metrics.table import DRIVER, DRIVER_LABELS
from rollcall.deploy.tools.monitoring import metric_names
from rollcall.deploy.tools.monitoring.files import ROOT
from rollcall.reward_service.scheduling.metrics import SERVICE
from tests.needs import needs

RULES = ROOT / "deploy" / "prometheus" / "rules"
CASES = Path(__file__).parent / "promtool"
ALERTS = {str(rule["alert"]): rule for rule in metric_names.rules() if "alert" in rule}
FIRING = re.compile(r'alertname="(\w+)"')
PROMTOOL = shutil.which("promtool")


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(CASES.glob("*.yml")):
        for test in yaml.safe_load(path.read_text())["tests"]:
            yield path.name, test


def test_there_is_an_alert_for_each_thing_that_can_go_wrong() -> None:
    wanted = {
        "NoLearnerStep",
        "QueueFull",
        "QueueEmpty",
        "LagAboveBound",
        "NonFiniteLoss",
        "RewardErrors",
        "RewardSlow",
    }
    wanted |= {"LogprobMismatch", "FreshMismatch", "EngineDrifts"}
    wanted |= {"Restarts", "CheckpointOld", "DiskLow", "DiskFull", "DiskForecast", "RedisDown", "TargetDown"}
    assert {f"Rollcall{name}" for name in wanted} <= ALERTS.keys()


@pytest.mark.parametrize("rule", list(metric_names.rules()), ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_a_rule_asks_only_for_metrics_that_somebody_serves(rule: dict[str, Any]) -> None:
    names = metric_names.names_in(str(rule["expr"]))
    assert names and names - metric_names.samples().keys() == set()


def test_a_rule_selects_only_by_labels_that_the_metric_has() -> None:
    """A misspelt label is the quietest way for an alert never to fire."""
    labels = {name: {*metric.labels, *DRIVER_LABELS} for metric in DRIVER for name in metric.samples}
    labels |= {name: {*metric.labels, "run"} for metric in SERVICE for name in metric.samples}
    checked = 0
    for rule in metric_names.rules():
        for name, selector in re.findall(r"(rollcall_\w+)\{([^}]*)\}", str(rule["expr"])):
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selector)):
                assert label in labels[name], f"{rule.get('alert')}: {name} has no label {label}"
                checked += 1
    assert checked > 10


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_says_how_bad_what_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert "for" in alert
    told = alert["annotations"]
    assert set(told) == {"summary", "description", "runbook_url"}
    assert told["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    # What a summary names must survive the rule's aggregation.
    kept = re.findall(r"by \(([^)]*)\)", str(alert["expr"]))
    named = set(re.findall(r"\$labels\.(\w+)", told["summary"]))
    if str(alert["expr"]).lstrip().startswith(("sum by", "histogram_quantile")):
        assert named <= {label.strip() for label in kept[0].split(",")}


def test_each_alert_has_a_section_of_the_runbook_and_each_section_an_alert_or_an_error() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    texts = {section.splitlines()[0].strip(): section for section in sections}
    errors = {name for name in texts if not name.startswith("Rollcall")}
    assert texts.keys() - errors == ALERTS.keys()
    program = "".join(path.read_text() for path in (ROOT / "deploy").rglob("*.py"))
    assert errors and all(name in program for name in errors), "an error's section is headed by what the error says"
    for name, text in texts.items():
        for part in ("**Means.**", "**Look at.**", "**Do.**"):
            assert part in text, f"{name} lacks {part}"
    anchors = {name.lower() for name in texts}
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= anchors


def test_the_runbook_sends_nobody_to_a_panel_that_does_not_exist() -> None:
    from rollcall.deploy.tools.monitoring.files import DASHBOARDS

    titles = {panel["title"] for board in DASHBOARDS.values() for panel in board.json()["panels"]}
    titles |= {mark.name for board in DASHBOARDS.values() for mark in board.annotations}
    titles |= {board.title.partition(" / ")[2] for board in DASHBOARDS.values()}
    page = " ".join((ROOT / "docs" / "runbook.md").read_text().split())
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*]{3,40})\*(?!\*)", page))
    assert len(named) > 20
    assert named - titles == set()


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_has_a_case_in_which_it_fires_and_is_silent_before(name: str) -> None:
    ours = [test for _, test in cases() if name in test["name"]]
    assert ours, f"no promtool case is named after {name}"
    asked = [check for test in ours for check in test["promql_expr_test"]]
    fires = [check for check in asked if any(name in sample["labels"] for sample in check["exp_samples"])]
    if not fires:  # the case may count what fires without naming it
        fires = [check for check in asked if check["exp_samples"]]
    assert fires and any(not check["exp_samples"] for check in asked)


@needs("promtool")
@pytest.mark.parametrize("path", sorted(CASES.glob("*.yml")), ids=lambda path: path.stem)
def test_promtool_finds_each_alert_where_it_belongs_and_nowhere_else(path: Path) -> None:
    assert promtool("test", "rules", str(path)) == ""


@needs("promtool")
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert promtool("check", "config", str(ROOT / "deploy" / "prometheus" / "prometheus.yml")) == ""


@needs("promtool")
@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("learning", ("> 300", "> 3000")),
        ("platform", ('role=~"driver|reward_service"', 'role="driver|reward_service"')),
        ("platform", ("for: 15s", "for: 90s")),
        ("reward", ("> 0.05", "> 0.5")),
    ],
)
def test_the_cases_notice_a_rule_that_was_changed(tmp_path: Path, file: str, change: tuple[str, str]) -> None:
    rules = tmp_path / "deploy" / "prometheus" / "rules"
    shutil.copytree(RULES, rules)
    text = (rules / f"{file}.yml").read_text()
    assert change[0] in text
    (rules / f"{file}.yml").write_text(text.replace(*change))
    case = tmp_path / "tests" / "deploy" / "tools" / "monitoring" / "promtool" / f"{file}.yml"
    case.parent.mkdir(parents=True)
    shutil.copy(CASES / f"{file}.yml", case)
    assert promtool("test", "rules", str(case)) != ""


def promtool(*arguments: str) -> str:
    """What it complains of; nothing when it is content."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}"
