"""The best evaluation of a run is known to whoever goes on with it: what was lost stays told of."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rollcall.cluster.metrics.run_metrics import RunMetrics
from rollcall.deploy.drive.run_watch import MetricsRecorder


def lost(metrics: RunMetrics) -> float:
    """As the alert sees it."""
    line = next(line for line in metrics.page().decode().splitlines() if line.startswith("rollcall_eval_lost_ratio{"))
    return float(line.rsplit(" ", 1)[1])


def recorder(directory: Path) -> tuple[MetricsRecorder, RunMetrics]:
    metrics = RunMetrics(run="r", policy="p", env="e", kind="language")
    watch: Any = SimpleNamespace(metrics=metrics, directory=directory, on_event=lambda kind, text: None)
    return MetricsRecorder(watch, []), metrics


def evaluation(step: int, mean: float) -> dict[str, Any]:
    return {"step": step, "mean": mean, "std": 0.1, "n": 400, "unit": "reward"}


def test_a_run_that_goes_on_holds_its_evaluations_against_the_best_before(tmp_path: Path) -> None:
    kept = [evaluation(0, 0.5), evaluation(10, 0.8), evaluation(20, 0.6)]
    (tmp_path / "evals.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    before, metrics = recorder(tmp_path)
    for record in kept:
        before.on_eval(record)
    told = lost(metrics)
    assert told > 0.2
    again, resumed = recorder(tmp_path)
    again.on_start({"start_step": 20})
    assert lost(resumed) == told, "the alert does not clear because the process is another one"
    again.on_eval(evaluation(30, 0.6))
    assert lost(resumed) == told
    early, rolled_back = recorder(tmp_path)
    early.on_start({"start_step": 5})  # the best is of a step that is made again
    assert lost(rolled_back) == 0.0
