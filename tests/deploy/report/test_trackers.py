"""Trackers beside a run: their real stores have the numbers of metrics.jsonl, and none of them ever touches the run."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.report.run_lines import read_jsonl
from rollcall.deploy.report.tags import flat, tag
from rollcall.deploy.report.trackers import opening
from rollcall.deploy.report.trackers.tracker import Aside, TrackedRun
from tests.deploy.report import wandb_file
from tests.needs import needs
from tests.runs import TWO_STEPS


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.yaml").write_text(TWO_STEPS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def train(*overrides: str, name: str = "small") -> Path:
    assert main.main(["train", "small.yaml", f"name={name}", *overrides]) == 0
    return Path("runs", name)


def recorded(run: Path) -> dict[tuple[str, int], float]:
    """(tag, learner step) -> value, as the run's own files have them."""
    found: dict[tuple[str, int], float] = {}
    for line in read_jsonl(run / "metrics.jsonl"):
        found |= {
            (tag(key), int(line["step"])): float(value)
            for key, value in line.items()
            if isinstance(value, int | float) and key not in ("step", "elapsed_s")
        }
    for line in read_jsonl(run / "evals.jsonl"):
        found |= {
            (f"eval/{key}", int(line["step"])): float(value)
            for key, value in line.items()
            if isinstance(value, int | float) and key not in ("step", "elapsed_s")
        }
    assert {("update/entropy", 0), ("update/entropy", 1), ("eval/mean", 2), ("rollout/env_steps", 1)} <= found.keys()
    return found


@needs("wandb")
def test_the_offline_store_of_wandb_has_the_numbers_of_metrics_jsonl(work: Path) -> None:
    run = train("recorders.wandb={project: poles, group: seeds, tags: [a, b]}")
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    history, config, described = wandb_file.read(path)
    found = {
        (key, int(row["learner_step"])): value
        for row in history
        for key, value in row.items()
        if not key.startswith("_") and key != "learner_step"
    }
    assert found == recorded(run)
    assert (described.project, described.run_group, list(described.tags)) == ("poles", "seeds", ["a", "b"])
    assert described.display_name == "small"
    assert config["algorithm.name"] == "ppo" and config["learner.learning_rate"] == 1e-3
    assert not any("redis.url" in key or key.startswith("recorders") for key in config)


@needs("mlflow")
def test_the_sqlite_store_of_mlflow_has_the_numbers_of_metrics_jsonl(work: Path) -> None:
    run = train("recorders.mlflow={experiment: poles, tags: {who: me}}")
    from mlflow.tracking import MlflowClient

    client: Any = MlflowClient(tracking_uri="sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("poles")
    (there,) = client.search_runs([experiment.experiment_id])
    found = {
        (key, item.step): item.value
        for key in there.data.metrics
        for item in client.get_metric_history(there.info.run_id, key)
    }
    assert found == recorded(run)
    assert there.info.status == "FINISHED" and there.info.run_name == "small" and there.data.tags["who"] == "me"
    assert there.data.params["algorithm.name"] == "ppo" and there.data.params["seed"] == "0"
    assert logging.getLogger("rollcall").isEnabledFor(logging.WARNING)


@needs("trackio")
def test_the_local_store_of_trackio_has_the_numbers_of_metrics_jsonl(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sqlite3

    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", work / "trackio")
    run = train("recorders.trackio.project=poles")
    second = train("recorders.trackio.project=poles", "seed=1", name="small-2")
    assert "Trackio" not in capsys.readouterr().out
    for directory in (run, second):
        (database,) = (work / "trackio").glob("poles*.db")
        with closing(sqlite3.connect(database)) as store:
            rows = store.execute("select step, metrics from metrics where run_name = ?", (directory.name,)).fetchall()
        found = {
            (key, int(step)): float(value)
            for step, metrics in rows
            for key, value in json.loads(metrics).items()
            if key != "learner_step"
        }
        assert found == recorded(directory)


@needs("mlflow")
def test_a_resumed_run_goes_on_in_its_own_run_at_the_tracker(work: Path) -> None:
    from mlflow.tracking import MlflowClient

    run = train("recorders=mlflow")
    assert main.main(["resume", "small", "total_learner_steps=3"]) == 0
    client: Any = MlflowClient(tracking_uri="sqlite:///mlflow.db")
    (there,) = client.search_runs([client.get_experiment_by_name("rollcall").experiment_id])
    assert json.loads((run / "trackers.json").read_text())["mlflow"] == there.info.run_id
    steps = [item.step for item in client.get_metric_history(there.info.run_id, "update/entropy")]
    assert steps == [0, 1, 2] and there.info.status == "FINISHED"


def test_a_recorder_of_ones_own_is_told_all_and_may_fail_without_ending_the_run(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_text(
        "import json, pathlib\n"
        "class Mine:\n"
        "    def on_start(self, info): self.name = info['name']; self.lines = []\n"
        "    def on_step(self, record): self.lines.append(record['step'])\n"
        "    def on_eval(self, record): self.lines.append(record['mean'])\n"
        "    def on_event(self, kind, text): pass\n"
        "    def close(self, summary): pathlib.Path('told.json').write_text(\n"
        "        json.dumps([self.name, self.lines, summary['status']]))\n"
        "class Fails(Mine):\n"
        "    def on_step(self, record): raise KeyError('loss')\n"
    )
    sys.modules.pop("mine", None)
    run = train("recorders=[mine:Mine, mine:Fails]")
    (evaluated,) = read_jsonl(run / "evals.jsonl")
    assert json.loads(Path("told.json").read_text()) == ["small", [0, 1, evaluated["mean"]], "completed"]
    (event,) = [line for line in read_jsonl(run / "events.jsonl") if line["kind"] == "warning"]
    assert event["text"] == "the recorder mine:Fails fails (KeyError: 'loss'), and is asked nothing more"


class Slow:
    """A tracker whose server hangs, or whose client raises."""

    def __init__(self, *, hangs_s: float = 0.0, raises: bool = False) -> None:
        self._hangs_s, self._raises = hangs_s, raises
        self.steps: list[int] = []
        self.threads: set[int] = set()

    def open(self, run: TrackedRun) -> str:
        return "here"

    def log(self, step: int, values: Mapping[str, float], *, unix_s: float) -> None:
        self.threads.add(threading.get_ident())
        if self._raises:
            raise ConnectionError("http://me:secret@host is gone")
        time.sleep(self._hangs_s)
        self.steps.append(step)

    def samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None: ...

    def close(self, status: str, summary: Mapping[str, float]) -> None: ...


def beside(tracker: Slow, directory: Path, close_timeout_s: float = 10.0) -> Aside:
    aside = Aside("slow", tracker, close_timeout_s=close_timeout_s)
    aside.open(TrackedRun("run", directory, {}, None))
    return aside


def test_a_server_that_is_slow_costs_the_run_nothing_and_gets_all(tmp_path: Path) -> None:
    tracker = Slow(hangs_s=0.02)
    aside = beside(tracker, tmp_path)
    began = time.monotonic()
    for step in range(20):
        aside.on_step({"step": step, "entropy": 1.0})
    assert time.monotonic() - began < 0.2
    aside.close({"status": "completed"})
    aside.close({"status": "completed"})
    assert tracker.steps == list(range(20)) and tracker.threads.isdisjoint({threading.get_ident()})


@pytest.mark.parametrize(
    ("tracker", "warning"),
    [
        (Slow(hangs_s=30.0), "slow has not taken the rest within 0.2 s, and is left"),
        (Slow(raises=True), "slow took nothing more from there on: ConnectionError: http://me:***@host is gone"),
    ],
    ids=["hangs", "raises"],
)
def test_a_server_that_is_gone_is_told_once_and_waited_for_no_longer_than_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tracker: Slow, warning: str
) -> None:
    aside = beside(tracker, tmp_path, close_timeout_s=0.2)
    for step in range(3):
        aside.on_step({"step": step, "entropy": 1.0})
    began = time.monotonic()
    aside.close({"status": "failed"})
    assert time.monotonic() - began < 5
    assert [record.getMessage() for record in caplog.records] == [warning]


def test_a_space_that_does_not_answer_is_waited_for_no_longer_than_said(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trackio's client waits without a limit while a Space is built."""
    gone = threading.Event()

    class Hanging(types.ModuleType):
        def Api(self) -> Any:
            raise ConnectionError

        def init(self, **settings: Any) -> Any:
            gone.wait(60)

    monkeypatch.setitem(sys.modules, "trackio", Hanging("trackio"))
    monkeypatch.setattr(opening, "find_spec", lambda package: object())
    began = time.monotonic()
    settings = ["recorders.trackio.space_id=me/space", "recorders.trackio.open_timeout_s=0.2"]
    assert main.main(["train", "small.yaml", *settings]) == 2
    assert time.monotonic() - began < 30
    gone.set()
    (line,) = capsys.readouterr().err.splitlines()
    assert "the Space me/space has not answered within 0.2 s" in line and "open_timeout_s" in line
    assert not list(Path("runs").glob("*"))


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_one_line_before_the_run_and_leaves_no_directory(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(opening, "find_spec", lambda package: None if package == name else real(package))
    assert main.main(["train", "small.yaml", f"recorders=[{name}]"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"recorders.{name}: needs the package {name}: pip install 'rollcall-rl[{name}]'" in line
    assert not list(Path("runs").glob("*"))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("recorders=wandbb", ["recorders = 'wandbb'", "no recorder is called 'wandbb'", "module:Class"]),
        ("recorders.wandb.projct=x", ["recorders.wandb.projct", "did you mean recorders.wandb.project?"]),
        (
            "recorders.mlflow.tracking_uri=http://me:secret@host",
            ["a password would be kept", "MLFLOW_TRACKING_USERNAME"],
        ),
        ("recorders=[nowhere:Mine]", ["there is no module 'nowhere'"]),
        ("recorders=[json:JSONDecoder]", ["no recorder: it has no on_start"]),
    ],
)
def test_a_section_that_cannot_be_is_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], override: str, parts: list[str]
) -> None:
    assert main.main(["train", "small.yaml", override]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines
    assert "secret" not in lines[0]


@needs("mlflow")
def test_a_server_that_is_not_there_is_one_line_before_the_run(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "1")
    assert main.main(["train", "small.yaml", "recorders.mlflow.tracking_uri=http://127.0.0.1:9"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any("recorders.mlflow: no run can be opened at http://127.0.0.1:9" in line for line in lines), lines
    assert not list(Path("runs").glob("*"))


def test_a_tracker_is_closed_where_another_one_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    class Opens(Slow):
        def close(self, status: str, summary: Mapping[str, float]) -> None:
            ended.append(status)

    class Refuses(Slow):
        def open(self, run: TrackedRun) -> str:
            raise BadInput("no server")

    monkeypatch.setattr(opening, "_MAKES", {"wandb": lambda config: Opens(), "mlflow": lambda config: Refuses()})
    monkeypatch.setattr(opening, "find_spec", lambda package: object())
    with pytest.raises(BadInput, match="no server"):
        opening.open_recorders(load_config("cartpole-ppo", ["recorders=[wandb, mlflow]"]), tmp_path)
    assert ended == ["failed"]


def test_names_and_sections_mean_the_same() -> None:
    short = load_config("cartpole-ppo", ["recorders=[mlflow, my_module:Mine]"]).recorders
    full = load_config("cartpole-ppo", ["recorders={mlflow: {}, own: [my_module:Mine]}"]).recorders
    assert short == full and short.mlflow is not None and short.wandb is None
    assert load_config("cartpole-ppo", ["recorders.wandb.mode=offline"]).recorders.wandb is not None


def test_who_records_is_no_part_of_the_result() -> None:
    plain, tracked = (load_config("cartpole-ppo", o) for o in ([], ["recorders=[wandb]"]))
    assert plain.config_hash == tracked.config_hash


def test_settings_lie_flat_by_their_dotted_names() -> None:
    nested = {"algorithm": {"name": "ppo", "clip": 0.2, "none": None}, "policy": {"hidden_sizes": [64, 64]}, "on": True}
    assert flat(nested) == {
        "algorithm.name": "ppo",
        "algorithm.clip": 0.2,
        "policy.hidden_sizes": "[64, 64]",
        "on": True,
    }


def test_settings_that_are_sent_on_have_no_password() -> None:
    assert flat({"reward": {"url": "http://me:geheim@rewards:9", "hosts": ["http://a:b@c"]}}) == {
        "reward.url": "http://me:***@rewards:9",
        "reward.hosts": "['http://a:***@c']",
    }


def test_auto_is_offline_unless_somebody_is_logged_in(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rollcall.deploy.config.recipe.recorders_config import WandbConfig
    from rollcall.deploy.report.trackers.wandb_runs import WandbRun

    assert WandbRun(WandbConfig())._offline()
    (work / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    os.chmod(work / ".netrc", 0o600)
    assert not WandbRun(WandbConfig())._offline()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert WandbRun(WandbConfig())._offline() and not WandbRun(WandbConfig(mode="online"))._offline()


def test_bad_input_is_what_a_tracker_raises_that_cannot_be_opened(work: Path) -> None:
    with pytest.raises(BadInput, match="needs the package"):
        opening._require("no_such_package_at_all")
