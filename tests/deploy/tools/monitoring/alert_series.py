"""When alerts fire in a run, by what it recorded: its lines of metrics.jsonl as the driver would serve them to
Prometheus, and the shipped rules over these series, in promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from rollcall.cluster.metrics.run_metrics import RunMetrics
from rollcall.deploy.tools.monitoring.files import ROOT

STEP_S = 60  # a learner step of a run worth watching takes a minute
_ASKED = re.compile(r"time: (\w+),\s*\n\s*exp:\s*\S*\s*\n?\s*got:(.*)")


def first_firing(records: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, int]:
    """By the alert's name, the learner step after which it fires first; alerts that do not fire are not there."""
    case = folder / "case.yml"
    case.write_text(yaml.safe_dump(_case(records, folder), sort_keys=False, width=1_000_000))
    program = shutil.which("promtool")
    assert program is not None
    done = subprocess.run(
        [program, "test", "rules", str(case)], capture_output=True, text=True, timeout=120, check=False
    )
    said = done.stdout + done.stderr
    assert ("SUCCESS" in said) == (done.returncode == 0), said
    found: dict[str, int] = {}
    for when, got in _ASKED.findall(said):
        for name in re.findall(r'alertname="(\w+)"', got):
            step = _seconds(when) // STEP_S
            found[name] = min(step, found.get(name, step))
    assert found or done.returncode == 0, said
    return found


def _case(records: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    shutil.copytree(ROOT / "deploy" / "prometheus" / "rules", folder / "rules", dirs_exist_ok=True)
    series = [{"series": name, "values": values} for name, values in _series(records).items()]
    asked = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{step * STEP_S}s",
            "exp_samples": [],
        }
        for step in range(len(records))
    ]
    test = {"interval": f"{STEP_S}s", "input_series": series, "promql_expr_test": asked}
    return {"rule_files": ["rules/*.yml"], "evaluation_interval": "30s", "tests": [test]}


def _series(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What each scrape finds, one after each learner step."""
    metrics = RunMetrics(run="r", policy="p", env="e", kind="language")
    metrics.enter("training")
    values: defaultdict[str, list[str]] = defaultdict(list)
    for step, record in enumerate(records):
        metrics.on_step(record)
        for family in text_string_to_metric_families(metrics.page().decode()):
            for sample in family.samples:
                if not sample.name.startswith("rollcall_") or "timestamp" in sample.name:
                    continue  # the clock here is not that of the case
                labels = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(sample.labels.items()))
                column = values[f"{sample.name}{{{labels}}}"]
                column += ["_"] * (step - len(column))
                column.append(repr(float(sample.value)))
    return {name: " ".join(column + ["_"] * (len(records) - len(column))) for name, column in values.items()}


def _seconds(text: str) -> int:
    """Of promtool's 1h2m3s."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", text))
