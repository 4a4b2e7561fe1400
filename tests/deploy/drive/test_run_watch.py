"""What a real run, in one process, shows of itself while it lasts, and what is left of that when it ends."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rollcall.cluster.errors import BadInput
from rollcall.cluster.metrics.discovery import FOLDER
from rollcall.deploy.drive.lifecycle import drive_alone
from tests.runs import config_of

SMALL = (
    "runtime=serial",
    "env=CartPole-v1",
    "actors={num_envs: 4, num_shards: 2, unroll_length: 16}",
    "algorithm={name: ppo, epochs: 1, num_minibatches: 1}",
    "total_env_steps=640",
    "learner.compile='off'",
    "eval.episodes=0",
    "checkpoint.every_steps=4",
)


class Visitor:
    """A recorder that scrapes the run's own endpoint, found as Prometheus finds it, after some step."""

    def __init__(self, runs: Path, *, at_step: int, error: Exception | None = None) -> None:
        self.runs, self.at_step, self.error = runs, at_step, error
        self.labels: dict[str, str] = {}
        self.found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}

    def on_start(self, info: Any) -> None: ...
    def on_eval(self, record: Any) -> None: ...
    def on_event(self, kind: str, text: str) -> None: ...
    def close(self, summary: Any) -> None: ...

    def on_step(self, record: Any) -> None:
        if record["step"] != self.at_step:
            return
        if self.error is not None:
            raise self.error
        (group,) = json.loads((self.runs / FOLDER / "watched.json").read_text())
        self.labels = group["labels"]
        with urllib.request.urlopen(f"http://{group['targets'][0]}/metrics", timeout=10) as reply:
            page = reply.read().decode()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                self.found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value

    def value(self, name: str, **labels: str) -> float:
        (found,) = (
            value for have, value in self.found[f"rollcall_{name}"].items() if labels.items() <= dict(have).items()
        )
        return found


def run(tmp_path: Path, visitor: Visitor, *overrides: str) -> dict[str, Any]:
    config = config_of("cartpole-ppo", [*SMALL, *overrides])
    directory = tmp_path / "watched"
    directory.mkdir(exist_ok=True)
    (directory / "run.json").write_text('{"recipe": "my-recipe"}')
    return drive_alone(config, directory, visitor)


def test_a_run_is_found_tells_where_it_stands_and_signs_off(tmp_path: Path) -> None:
    visitor = Visitor(tmp_path, at_step=6)
    summary = run(tmp_path, visitor)
    assert visitor.labels == {"run": "watched", "role": "driver"}
    assert visitor.value("run_info", run="watched", env="CartPole-v1", recipe="my-recipe", runtime="serial") == 1
    assert visitor.value("run_state", outcome="training") == 1
    # Asked in the middle of step 6: six were done (the seventh's own recorder comes after the visitor).
    assert visitor.value("learner_steps_total", outcome="done") == 6
    assert 0.5 < visitor.value("progress_ratio") < 1
    assert visitor.value("policy_lag_bound") == visitor.value("policy_lag_max") == 0
    assert visitor.value("tickets_capacity") == visitor.value("tickets_per_step") == 2
    assert visitor.value("last_checkpoint_step") == 4
    assert visitor.value("redis_up") == 1 and visitor.value("disk_free_bytes") > 0
    assert visitor.value("restarts_total", role="redis") == 0
    spent = visitor.value("metrics_seconds_total")
    assert 0 < spent < 1.0
    assert summary["status"] == "completed"
    assert not (tmp_path / FOLDER).exists(), "it has signed off"


def test_a_run_that_fails_leaves_a_target_that_is_down(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the disk is gone"):
        run(tmp_path, Visitor(tmp_path, at_step=2, error=RuntimeError("the disk is gone")))
    assert (tmp_path / FOLDER / "watched.json").exists()


def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        run(tmp_path, Visitor(tmp_path, at_step=2), "redis.url=redis://127.0.0.1:1/0", "redis.start_timeout_s=0.1")
    assert not (tmp_path / FOLDER).exists()
