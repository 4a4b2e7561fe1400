"""What a run writes down: fixed keys, whole lines, nothing of what a restore has undone, and all of it cheaply."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.deploy.report.plain_lines import PlainLines
from rollcall.deploy.report.recorders import (
    STEP_KEYS,
    JsonLines,
    Recorder,
    plain,
)
from rollcall.deploy.report.run_lines import read_jsonl
from rollcall.deploy.report.tensorboard import TensorBoard

START: dict[str, Any] = {"start_step": 0, "epoch": 1, "total_learner_steps": 100, "total_env_steps": 204_800}


def step_record(step: int, **more: Any) -> dict[str, Any]:
    record = {
        "step": step,
        "epoch": 1,
        "policy_version": step + 1,
        "wait_batch_s": 0.01,
        "update_s": 0.03,
        "publish_s": 0.001,
        "lag_max": 1,
        "lag_mean": 0.5,
        "return_mean": 20.0 + step,
        "env_steps": (step + 1) * 2048,
        "policy_loss": -0.01,
    }
    return record | more


def language_record(step: int, **more: Any) -> dict[str, Any]:
    shared = {key: value for key, value in step_record(step).items() if key not in ("return_mean", "env_steps")}
    samples = [{"prompt": "2+2=", "text": f"4\x1b[2J\ud83d \u2028{step}", "reward": 1.0}]
    return {**shared, "reward_mean": 0.5, "tokens": (step + 1) * 4096, "samples": samples} | more


def test_metrics_hold_every_fixed_key_in_every_line(tmp_path: Path) -> None:
    recorder = JsonLines(tmp_path)
    recorder.on_start(START)
    recorder.on_step({"step": 0, "env_steps": 2048, "policy_version": 1})
    recorder.on_step(step_record(1, entropy=torch.tensor(0.6), clip_fraction=np.float32(0.25)))
    recorder.close({})
    first, second = read_jsonl(tmp_path / "metrics.jsonl")
    assert set(STEP_KEYS["env_steps"]) <= first.keys()
    assert not {"reward_mean", "tokens"} & first.keys()
    assert first["return_mean"] is None
    assert second["entropy"] == pytest.approx(0.6)
    assert second["clip_fraction"] == 0.25
    assert second["elapsed_s"] >= first["elapsed_s"] >= 0


def test_a_language_line_has_the_keys_of_its_kind_and_none_of_the_other(tmp_path: Path) -> None:
    recorder = JsonLines(tmp_path)
    recorder.on_start(START | {"counts": "tokens"})
    recorder.on_step({"step": 0, "policy_version": 1, "tokens": 4096})
    recorder.close({})
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert set(STEP_KEYS["tokens"]) <= line.keys()
    assert not {"return_mean", "env_steps"} & line.keys()
    assert line["reward_mean"] is None
    assert not (tmp_path / "samples.jsonl").exists()  # no step showed any


def test_completions_go_to_a_file_of_their_own_character_by_character(tmp_path: Path) -> None:
    recorder = JsonLines(tmp_path)
    recorder.on_start(START | {"counts": "tokens"})
    for step in range(2):
        recorder.on_step(language_record(step))
    recorder.close({})
    expected = [{"step": step, "samples": language_record(step)["samples"]} for step in range(2)]
    assert read_jsonl(tmp_path / "samples.jsonl") == expected
    assert all("samples" not in line for line in read_jsonl(tmp_path / "metrics.jsonl"))


def test_completions_of_steps_that_come_again_are_replaced(tmp_path: Path) -> None:
    killed = JsonLines(tmp_path)
    killed.on_start(START | {"counts": "tokens"})
    for step in [0, 1, 2, 3, 2, 3]:  # a learner was lost and started again
        killed.on_step(language_record(step))
    killed.close({})
    assert [line["step"] for line in read_jsonl(tmp_path / "samples.jsonl")] == [0, 1, 2, 3]
    resumed = JsonLines(tmp_path)
    resumed.on_start(START | {"counts": "tokens", "start_step": 2})
    resumed.close({})
    assert [line["step"] for line in read_jsonl(tmp_path / "samples.jsonl")] == [0, 1]


def test_a_line_is_on_disk_as_soon_as_its_step_is_over(tmp_path: Path) -> None:
    recorder = JsonLines(tmp_path)
    recorder.on_start(START)
    recorder.on_step(step_record(0))
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1
    recorder.close({})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), torch.tensor(float("-inf"))])
def test_what_is_not_finite_is_written_as_null_so_that_any_json_reader_can_read_it(tmp_path: Path, value: Any) -> None:
    recorder = JsonLines(tmp_path)
    recorder.on_start(START)
    recorder.on_step(step_record(0, value_loss=value, nested={"inner": [value, 1]}))
    recorder.close({})

    def refuse(constant: str) -> None:
        raise AssertionError(f"bare {constant}")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["value_loss"] is None
    assert line["nested"] == {"inner": [None, 1]}


def test_a_resumed_run_records_each_step_once_and_its_clock_goes_on(tmp_path: Path) -> None:
    killed = JsonLines(tmp_path)
    killed.on_start(START)
    for step in range(8):
        killed.on_step(step_record(step))
    killed.on_eval({"step": 4, "env_steps": 1, "mean": 1.0})
    killed.on_eval({"step": 7, "env_steps": 1, "mean": 2.0})
    killed.close({})  # every line was flushed before: closing adds nothing that a kill would not leave
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "ep')  # killed in the middle of a line
    resumed = JsonLines(tmp_path)
    resumed.on_start(START | {"start_step": 5, "epoch": 2})  # the checkpoint had consumed batches 0 to 4
    for step in range(5, 10):
        resumed.on_step(step_record(step, epoch=2))
    resumed.close({})
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["epoch"]) for r in records] == [(s, 1 if s < 5 else 2) for s in range(10)]
    clock = [r["elapsed_s"] for r in records]
    assert clock == sorted(clock)
    assert [r["mean"] for r in read_jsonl(tmp_path / "evals.jsonl")] == [1.0]


def test_steps_that_come_again_after_a_lost_learner_replace_the_first_ones(tmp_path: Path) -> None:
    recorder = JsonLines(tmp_path)
    recorder.on_start(START)
    for step in [0, 1, 2, 3, 4, 2, 3, 4, 5]:
        recorder.on_step(step_record(step))
    recorder.on_event("checkpoint", "step 6")
    recorder.close({})
    assert [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4, 5]
    assert read_jsonl(tmp_path / "events.jsonl")[0]["kind"] == "checkpoint"


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value, as TensorBoard's own reader sees it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {(tag, e.step): e.value for tag in reader.Tags()["scalars"] for e in reader.Scalars(tag)}


def test_tensorboard_reads_back_what_was_recorded(tmp_path: Path) -> None:
    recorder = TensorBoard(tmp_path)
    recorder.on_start(START)
    for step in range(3):
        recorder.on_step(step_record(step, value_loss=float("nan") if step == 1 else 2.0))
    recorder.on_eval({"step": 3, "env_steps": 6144, "mean": 88.0, "std": 3.0, "n": 20})
    recorder.close({})
    recorder.close({})
    found = scalars(tmp_path / "tensorboard")
    assert found["rollout/return_mean", 2] == 22.0
    assert found["update/value_loss", 0] == 2.0
    assert ("update/value_loss", 1) not in found
    assert found["eval/mean", 3] == 88.0


def test_tensorboard_groups_what_a_language_run_measures_and_leaves_out_the_texts(tmp_path: Path) -> None:
    recorder = TensorBoard(tmp_path)
    recorder.on_start(START | {"counts": "tokens"})
    recorder.on_step(language_record(0, exact_match=0.25, reward_format=0.5, tokens_per_s=900.0, apply_s=0.2, loss=1.0))
    recorder.on_eval({"step": 1, "tokens": 4096, "mean": 0.75, "std": 0.4, "n": 8, "unit": "exact match"})
    recorder.close({})
    found = scalars(tmp_path / "tensorboard")
    assert found["rollout/exact_match", 0] == 0.25
    assert found["rollout/reward_mean", 0] == found["rollout/reward_format", 0] == 0.5
    assert found["rollout/tokens", 0] == 4096
    assert found["run/tokens_per_s", 0] == 900
    assert found["time/apply_s", 0] == pytest.approx(0.2)
    assert found["update/loss", 0] == 1.0
    assert found["eval/mean", 1] == 0.75
    assert not [tag for tag, _ in found if "samples" in tag or "unit" in tag]


def test_tensorboard_forgets_the_steps_that_a_resume_does_again(tmp_path: Path) -> None:
    for start, stop, value in [(0, 8, 1.0), (5, 10, 2.0)]:
        recorder = TensorBoard(tmp_path)
        recorder.on_start(START | {"start_step": start})
        for step in range(start, stop):
            recorder.on_step(step_record(step, entropy=value))
        recorder.close({})
        time.sleep(1.1)  # event files are named by the second
    found = scalars(tmp_path / "tensorboard")
    assert {step: found["update/entropy", step] for step in range(10)} == {s: 1.0 if s < 5 else 2.0 for s in range(10)}


def test_recording_a_step_costs_less_than_a_millisecond(tmp_path: Path) -> None:
    """At 50 steps/s that is 5% of the driver; 0.25 ms on a quiet machine. CPU time, the best of five: what else the
    machine does costs caches, and up to twice the time was seen."""
    recorders: list[Recorder] = [JsonLines(tmp_path), TensorBoard(tmp_path), PlainLines(io.StringIO())]
    for recorder in recorders:
        recorder.on_start(START)
    record = step_record(0, **{f"metric_{n}": n * 0.1 for n in range(15)})
    costs = []
    for repeat in range(5):
        began = time.process_time()
        for step in range(200):
            for recorder in recorders:
                recorder.on_step(record | {"step": repeat * 200 + step})
        recorders[1]._flush()  # type: ignore[attr-defined]
        costs.append((time.process_time() - began) / 200)
    for recorder in recorders:
        recorder.close({})
    assert min(costs) < 1e-3


def test_plain_turns_arrays_into_lists_and_the_rest_into_text() -> None:
    assert plain({"a": np.arange(2), 3: Path("x")}) == {"a": [0, 1], "3": "x"}


def test_lines_that_a_full_disk_refuses_are_dropped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")  # where every write is refused as on a full disk
    lines = JsonLines(tmp_path)
    lines.on_step({"step": 0})
    lines.on_step({"step": 1})
    (tmp_path / "metrics.jsonl").unlink()
    lines.close({})
    lines.on_step({"step": 2})
    lines.close({})
    assert [record["step"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == [2]
    (warning,) = caplog.records
    assert "lines of metrics.jsonl are dropped (No space left on device): make room in" in warning.getMessage()


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return reader


def test_tensorboard_has_the_settings_as_a_table(tmp_path: Path) -> None:
    """As its HPARAMS page reads them: one session with its values, and the columns beside it."""
    from tensorboard.plugins.hparams import metadata

    recorder = TensorBoard(tmp_path, settings={"algorithm": {"name": "ppo", "discount": 0.98}, "seed": 3})
    recorder.on_start(START)
    recorder.close({})
    found = events(tmp_path / "tensorboard").summary_metadata
    start = metadata.parse_session_start_info_plugin_data(found["_hparams_/session_start_info"].plugin_data.content)
    assert start.hparams["algorithm.name"].string_value == "ppo"
    assert start.hparams["algorithm.discount"].number_value == 0.98 and start.hparams["seed"].number_value == 3
    experiment = metadata.parse_experiment_plugin_data(found["_hparams_/experiment"].plugin_data.content)
    assert [info.name.tag for info in experiment.metric_infos] == [
        "eval/mean",
        "rollout/return_mean",
        "rollout/reward_mean",
    ]


def test_tensorboard_shows_what_the_model_wrote_as_texts(tmp_path: Path) -> None:
    recorder = TensorBoard(tmp_path)
    recorder.on_start(START | {"counts": "tokens"})
    recorder.on_step(language_record(0, samples=[{"prompt": "2+2=", "text": "4\n*", "reward": 1.0}]))
    recorder.close({})
    reader = events(tmp_path / "tensorboard")
    assert reader.summary_metadata["samples"].plugin_data.plugin_name == "text"
    (event,) = reader.Tensors("samples")
    assert (event.step, list(event.tensor_proto.string_val)) == (
        0,
        [b"reward 1.0\n\nprompt:\n\n    2+2=\n\ntext:\n\n    4\n    *"],
    )


@pytest.mark.parametrize(("counts", "record"), [("env_steps", step_record), ("tokens", language_record)])
def test_tensorboards_axis_may_be_what_the_run_counts(tmp_path: Path, counts: str, record: Any) -> None:
    lines, recorder = JsonLines(tmp_path), TensorBoard(tmp_path, over_counted=True)
    for one in (lines, recorder):
        one.on_start(START | {"counts": counts})
        for step in range(3):
            one.on_step(record(step))
        one.on_eval({"step": 3, counts: 9999, "mean": 0.5})
        one.close({})
    time.sleep(1.1)  # event files are named by the second
    lines, recorder = JsonLines(tmp_path), TensorBoard(tmp_path, over_counted=True)
    for one in (lines, recorder):  # from a checkpoint after step 1
        one.on_start(START | {"counts": counts, "start_step": 2})
    for one in (lines, recorder):
        one.on_step(record(2, update_s=7.0))
        one.close({})
    found = scalars(tmp_path / "tensorboard")
    sizes = [int(record(step)[counts]) for step in range(3)]
    assert {at: value for (tag, at), value in found.items() if tag == "time/update_s"} == {
        sizes[0]: pytest.approx(0.03),
        sizes[1]: pytest.approx(0.03),
        sizes[2]: 7.0,
    }
    assert ("eval/mean", 9999) not in found  # it was of what the resume does again
