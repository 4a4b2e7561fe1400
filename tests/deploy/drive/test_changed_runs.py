"""A run that goes on with other settings: a new segment of the same run, booked so; and what a run keeps."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books.audit import audit_run
from rollcall.cluster.books.settings_history import (
    SettingsHistory,
    SettingsSpan,
    booked_spans,
    changes_between,
    read_settings_history,
    write_settings_history,
)
from rollcall.cluster.checkpoint import list_checkpoints
from rollcall.cluster.errors import BadInput, CheckpointDamaged
from rollcall.cluster.store.run_lock import DirectoryLock
from rollcall.deploy.cli import main
from rollcall.deploy.drive.changes import changed
from rollcall.deploy.drive.lifecycle import carry_out
from rollcall.deploy.kinds.loading import load
from rollcall.deploy.kinds.recipes import load_run
from rollcall.deploy.report.run_lines import read_jsonl
from rollcall.deploy.rundir.earlier_runs import run_hash
from tests.runs import trained as two_steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a completed run of two steps, runs/short."""
    with two_steps(tmp_path_factory.mktemp("work"), "short") as folder:
        yield folder


@pytest.fixture
def short(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in a working directory of its own."""
    shutil.copytree(trained, tmp_path / "work", ignore=shutil.ignore_patterns("*.sock", "lock"))
    monkeypatch.chdir(tmp_path / "work")
    return Path("runs/short")


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def rates(run: Path) -> list[float]:
    return [record["learning_rate"] for record in read_jsonl(run / "metrics.jsonl")]


def test_a_completed_run_that_is_made_longer_is_the_run_that_was_as_long_from_the_beginning(short: Path) -> None:
    assert main.main(["resume", "short", "total_learner_steps=4"]) == 0
    assert main.main(["train", "small.yaml", "name=long", "total_learner_steps=4"]) == 0
    long = short.with_name("long")
    assert summary(short)["status"] == "completed" and summary(short)["learner_steps"] == 4
    assert summary(short)["weights_hash"] == summary(long)["weights_hash"]
    assert [r["env_steps"] for r in read_jsonl(short / "metrics.jsonl")] == [
        r["env_steps"] for r in read_jsonl(long / "metrics.jsonl")
    ]
    assert audit_run(short) == []


def test_a_schedule_goes_by_the_whole_run_as_long_as_it_is_now(short: Path) -> None:
    settings = ["total_learner_steps=4", "learner.anneal_learning_rate=true", "learner.learning_rate=2e-3"]
    assert main.main(["resume", "short", *settings]) == 0
    assert rates(short) == pytest.approx([1e-3, 1e-3, 2e-3 * (1 - 2 / 4), 2e-3 * (1 - 3 / 4)])


def test_a_new_segment_is_booked_beside_the_config_and_shown_by_audit_and_report(
    short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, old_hash = (short / "config.yaml").read_text(), run_hash(short)
    assert main.main(["resume", "short", "total_learner_steps=3", "learner.learning_rate=5e-4"]) == 0
    first, second = booked_spans(short)
    assert (first.step, first.config_hash) == (0, old_hash)
    assert (second.step, second.config_hash) == (2, run_hash(short))
    assert second.changes == {"total_learner_steps": (2, 3), "learner.learning_rate": (1e-3, 5e-4)}
    assert (short / "config.0.yaml").read_text() == before
    assert rates(short) == [1e-3, 1e-3, 5e-4]
    text = "from step 2: total_learner_steps 2 -> 3, learner.learning_rate 0.001 -> 0.0005"
    assert [e["text"] for e in read_jsonl(short / "events.jsonl") if e["kind"] == "segment"] == [text]
    capsys.readouterr()
    assert main.main(["audit", "short"]) == 0
    assert f"segment {text}" in capsys.readouterr().out
    page = (short / "report.html").read_text()
    at = read_jsonl(short / "metrics.jsonl")[1]["env_steps"]
    assert f'"marks":[{{"x":{float(at)},"text":"{text}"}}]'.replace(">", ">") in page
    # Checkpoints of both segments are the run's still.
    assert [load(path).weights.version for path in list_checkpoints(short)] == [0, 1, 2, 3]


def test_a_segment_may_follow_a_segment_and_the_run_can_be_resumed_as_it_is(short: Path) -> None:
    for total, rate in ((3, "5e-4"), (4, "1e-3")):  # back to the first rate: its segment is another one all the same
        assert main.main(["resume", "short", f"total_learner_steps={total}", f"learner.learning_rate={rate}"]) == 0
    assert [segment.step for segment in booked_spans(short)] == [0, 2, 3]
    assert main.main(["resume", "short"]) == 0
    assert summary(short)["learner_steps"] == 4
    assert audit_run(short) == []


class StopAfter:
    """A recorder that asks for a stop once so many learner steps are done."""

    def __init__(self, steps: int) -> None:
        self.stop = threading.Event()
        self._steps = steps

    def on_step(self, record: Any) -> None:
        if record["step"] + 1 >= self._steps:
            self.stop.set()

    def on_start(self, info: Any) -> None: ...
    def on_eval(self, record: Any) -> None: ...
    def on_event(self, kind: str, text: str) -> None: ...
    def close(self, summary: Any) -> None: ...


def test_a_changed_run_that_is_stopped_and_resumed_is_bitwise_the_one_that_was_not_stopped(short: Path) -> None:
    settings = ["total_learner_steps=5", "learner.learning_rate=5e-4", "learner.anneal_learning_rate=true"]
    other = short.with_name("other")
    shutil.copytree(short, other, ignore=shutil.ignore_patterns("*.sock", "lock"))
    assert main.main(["resume", "other", *settings]) == 0
    run, changes = changed(load_run(short), settings)
    stopper = StopAfter(3)
    stopped = carry_out(run, resume=True, stop_requested=stopper.stop.is_set, console=[stopper], changes=changes)
    assert stopped["status"] == "stopped" and stopped["learner_steps"] < 5
    assert main.main(["resume", "short"]) == 0
    assert summary(short)["weights_hash"] == summary(other)["weights_hash"]
    assert rates(short) == rates(other)
    assert [segment.step for segment in booked_spans(short)] == [0, 2]


KEPT = [
    *("seed=1", "env=Acrobot-v1", "env.max_episode_steps=9", "policy.hidden_sizes=[16]", "policy.activation=relu"),
    *("actors.num_envs=4", "actors.num_shards=1", "actors.unroll_length=4", "max_policy_lag=3", "algorithm=a2c"),
    *("reward=my_module:score", "learner.optimizer=sgd", "runtime=ray", "name=other", "redis.url=redis://localhost"),
]


@pytest.mark.parametrize("override", KEPT)
def test_what_the_books_and_the_models_are_made_with_stays(trained: Path, override: str) -> None:
    run = trained / "runs" / "short"
    with pytest.raises(BadInput) as caught:
        changed(load_run(run), [override, "total_learner_steps=9"])
    lines = str(caught.value).splitlines()
    named = {"env": "env.id", "algorithm": "algorithm.", "reward": "reward"}.get(
        override.partition("=")[0], override.partition("=")[0]
    )
    assert any(line.startswith(named) for line in lines)
    assert all("command line" in line and "total_learner_steps" not in line for line in lines)


MAY = [
    *("total_learner_steps=9", "total_env_steps=900", "learner.schedule.warmup_steps=3", "learner.max_grad_norm=1.0"),
    *("algorithm.clip_range=0.1", "algorithm.entropy_coef=0.01", "eval.episodes=3", "eval.every_steps=1"),
    *("checkpoint.keep=2", "actors.ticket_deadline_s=60.0", "supervision.max_restarts=1", "metrics.port=9999"),
]


@pytest.mark.parametrize("override", MAY)
def test_how_long_how_and_where_a_run_goes_on_may_change(trained: Path, override: str) -> None:
    _, changes = changed(load_run(trained / "runs" / "short"), [override])
    assert override.partition("=")[0] in changes


def test_settings_given_as_they_are_change_nothing(trained: Path) -> None:
    assert changed(load_run(trained / "runs" / "short"), ["total_learner_steps=2", "seed=0"])[1] == {}


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["total_learner_steps=1"], "total_learner_steps = 1 (command line): the run has done 2 already"),
        (["total_env_steps=16"], "total_env_steps = 16 (command line): the run has done"),
        (["learner.learning_rate=1e-4"], "the run is completed; to go on with it give a larger total_learner_steps"),
        (["learner.lerning_rate=1e-4"], "did you mean learner.learning_rate?"),
        (["learner.learning_rate=fast"], "must be a number"),
    ],
)
def test_a_change_that_cannot_be_is_refused_in_one_line_and_leaves_the_run_as_it_was(
    short: Path, overrides: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in short.rglob("*") if path.is_file()}
    assert main.main(["resume", "short", *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert {path: path.read_bytes() for path in short.rglob("*") if path.is_file()} == before


def test_a_run_that_another_driver_holds_is_not_changed(short: Path) -> None:
    before = (short / "config.yaml").read_text()
    lock = DirectoryLock(short)
    try:
        assert main.main(["resume", "short", "total_learner_steps=3"]) == 2
    finally:
        lock.release()
    assert (short / "config.yaml").read_text() == before
    assert not (short / "segments.json").exists()


def test_a_driver_killed_between_booking_a_segment_and_writing_its_config_has_not_begun_it(tmp_path: Path) -> None:
    first, second = (SettingsSpan(step=step, config_hash=name) for step, name in ((0, "a"), (5, "b")))
    write_settings_history(tmp_path, SettingsHistory((first, second)))
    assert read_settings_history(tmp_path, config_hash="b").all == (first, second)
    assert read_settings_history(tmp_path, config_hash="a").all == (first,)
    with pytest.raises(CheckpointDamaged, match="put back the file"):
        read_settings_history(tmp_path, config_hash="c")


def test_a_restore_to_before_a_segment_lets_it_begin_there() -> None:
    found = SettingsHistory(
        (SettingsSpan(step=0, config_hash="a"), SettingsSpan(step=5, config_hash="b"))
    ).beginning_at(3)
    assert [segment.step for segment in found.all] == [0, 3]


def test_changes_are_named_by_their_dotted_path_and_lists_are_compared_whole() -> None:
    before, after = {"a": {"b": 1, "c": [1]}, "d": None}, {"a": {"b": 2, "c": [1, 2]}, "d": {"e": 1}}
    assert changes_between(before, after) == {"a.b": (1, 2), "a.c": ([1], [1, 2]), "d": (None, {"e": 1})}


def test_the_audit_finds_a_checkpoint_that_no_segment_has_and_segments_out_of_order(short: Path) -> None:
    assert main.main(["resume", "short", "total_learner_steps=3"]) == 0
    first, second = booked_spans(short)
    write_settings_history(short, SettingsHistory((first, second.model_copy(update={"step": 1}))))
    assert ["step-00000002" in str(found) for found in audit_run(short)] == [True]
    write_settings_history(short, SettingsHistory((first.model_copy(update={"step": 4}), second)))
    assert any("the first segment begins at step 4" in str(found) for found in audit_run(short))
