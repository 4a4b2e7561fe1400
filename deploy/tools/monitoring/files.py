"""Writes what is made from code and committed: the dashboards' JSON, the rules as Kubernetes takes them, and
docs/metrics.md. `make generate` in a source tree; a test says when they have drifted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from rollcall.cluster.metrics.names import NAMES
from rollcall.cluster.metrics.run_metrics import metric_of
from rollcall.cluster.metrics.table import DRIVER, DRIVER_LABELS, Metric
from rollcall.deploy.report.tags import tag
from rollcall.deploy.tools.monitoring.dashboard_control import CONTROL
from rollcall.deploy.tools.monitoring.dashboard_language import LANGUAGE
from rollcall.deploy.tools.monitoring.dashboard_overview import OVERVIEW
from rollcall.deploy.tools.monitoring.dashboard_services import CLUSTER_HEALTH, REWARD_SERVICE
from rollcall.deploy.tools.monitoring.metric_names import EXTERNAL, rule_files, rules
from rollcall.reward_service.scheduling.metrics import SERVICE

ROOT = Path(__file__).resolve().parents[3]
DASHBOARDS = {
    "run-overview": OVERVIEW,
    "control": CONTROL,
    "language": LANGUAGE,
    "reward-service": REWARD_SERVICE,
    "cluster-health": CLUSTER_HEALTH,
}

_METRICS_PAGE = """# Metrics

Made from `cluster/metrics/table.py`, `cluster/metrics/names.py`, `reward_service/scheduling/metrics.py` and
`deploy/tools/monitoring/metric_names.py` by `make generate`.

A metric that was never set has no sample: nothing is claimed that nobody measured. Labels are few and bounded: no
ticket, actor or request is one. Counters are shown with their `_total`; a histogram has `_bucket`, `_sum` and `_count`.

## The driver

Served at `http://127.0.0.1:9464/metrics` (`metrics.host`, `metrics.port`; another port where that is taken), and found
by Prometheus through `runs/.prometheus/<run>.json`. Each has the labels {driver_labels}; further ones are named.

{driver}

## One name for one number

What a number of `metrics.jsonl` is called on the report, in comparisons and on the dashboards, and where else it is: a
tag of TensorBoard and of the trackers, and a metric from above. The same keys, titles and units stand everywhere.

{names}

## The reward service

Served at its own `/metrics`; found through `runs/.prometheus/`, whether a run or a person has started it.

{service}

## Recording rules

{recording}

## From others

What the dashboards show besides. A cluster that `rollcall train` starts for itself has Ray's metrics off: their agent
would take a good part of a core. One that runs join (`RAY_ADDRESS`) names its nodes to Prometheus itself. vLLM runs
inside the actors: the few of its numbers that matter come with each finished prompt and are `rollcall_engine_*` above.

{external}
"""


def generated() -> Iterator[tuple[Path, str]]:
    """Each file, with what it should hold."""
    for name, dashboard in DASHBOARDS.items():
        text = json.dumps(dashboard.json(), indent=1, ensure_ascii=False) + "\n"
        yield ROOT / "deploy" / "grafana" / "dashboards" / f"{name}.json", text
    yield ROOT / "deploy" / "prometheus" / "prometheusrule.yaml", _prometheus_rule()
    yield ROOT / "docs" / "metrics.md", metrics_page()


def _prometheus_rule() -> str:
    """The rules as an object of the Prometheus operator's."""
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "rollcall", "labels": {"app.kubernetes.io/name": "rollcall"}},
        "spec": {"groups": [group for content in rule_files().values() for group in content["groups"]]},
    }
    head = "# Made from rules/*.yml by make generate\n"
    return head + yaml.safe_dump(resource, sort_keys=False, width=1000, allow_unicode=True)


def metrics_page() -> str:
    labels = ", ".join(f"`{label}`" for label in DRIVER_LABELS)
    recording = _table(
        ("name", "is"), [(f"`{r['record']}`", f"`{' '.join(r['expr'].split())}`") for r in rules() if "record" in r]
    )
    return _METRICS_PAGE.format(
        driver_labels=labels,
        driver=_table(("name", "type", "unit", "further labels", "runs", "meaning", "from when on"), _rows(DRIVER)),
        names=_table(("key", "title", "unit", "of", "TensorBoard", "Prometheus"), _name_rows()),
        service=_table(
            ("name", "type", "unit", "labels", "meaning", "from when on"),
            [(*row[:4], *row[5:]) for row in _rows(SERVICE)],
        ),
        recording=recording,
        external=_table(
            ("name", "unit", "served by", "meaning"),
            [(f"`{item.name}`", item.unit, item.server, item.text) for item in EXTERNAL],
        ),
    )


def _rows(metrics: Sequence[Metric]) -> list[tuple[str, ...]]:
    return [
        (
            f"`{_family(metric)}`",
            metric.kind,
            metric.unit,
            ", ".join(f"`{label}`" for label in metric.labels),
            "all" if metric.runs == "either" else metric.runs,
            metric.text,
            metric.when or "the start",
        )
        for metric in metrics
    ]


def _name_rows() -> list[tuple[str, ...]]:
    kinds = {metric.name: metric for metric in DRIVER}
    rows: list[tuple[str, ...]] = []
    for key, name in NAMES.items():
        metric, *label = metric_of(key) or ("",)
        family = f"`{_family(kinds[metric])}`" if metric else ""
        labelled = f"{family} ({label[0]})" if label else family
        rows.append((f"`{key}`", name.title, name.unit, name.group, f"`{tag(key)}`", labelled))
    return rows


def _family(metric: Metric) -> str:
    return f"{metric.family}{'_total' if metric.kind == 'counter' else ''}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def drifted() -> Mapping[Path, str]:
    """The committed files that are not what the code makes, with what they should hold."""
    return {path: text for path, text in generated() if not path.exists() or path.read_text(encoding="utf-8") != text}


def main() -> int:
    for path, text in drifted().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
