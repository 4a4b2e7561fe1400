"""Event files for TensorBoard, through the tensorboard package alone: no torch, no TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rollcall.deploy.report.recorders import Record, plain
from rollcall.deploy.report.run_lines import last_record
from rollcall.deploy.report.tags import flat, numbers

_SHOWN_METRICS = ("eval/mean", "rollout/return_mean", "rollout/reward_mean")  # columns of the table of settings


class TensorBoard:
    """Event files under <run>/tensorboard: curves, the settings (HPARAMS) and what a language model wrote (TEXT).

    Steps are kept as they come and encoded every `every_s` seconds, one event per step: encoding is most of the cost,
    and the writer's own thread does the disk.
    """

    def __init__(
        self,
        run_directory: Path,
        *,
        every_s: float = 2.0,
        settings: Mapping[str, Any] | None = None,
        over_counted: bool = False,
    ) -> None:
        """`settings`: of the run, for its table. `over_counted`: curves are drawn over env steps or tokens, as the run
        counts, and not over learner steps."""
        self._directory = run_directory
        self._folder = run_directory / "tensorboard"
        self._every_s = every_s
        self._settings = settings
        self._over_counted = over_counted
        self._counts = ""  # the key of what curves are drawn over; empty: learner steps
        self._pending: list[tuple[float, bool, Record]] = []
        self._flushed = time.monotonic()
        self._writer: Any = None

    def on_start(self, info: Record) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._folder), flush_secs=10)
        self._counts = str(info.get("counts") or "env_steps") if self._over_counted else ""
        start_step = int(info.get("start_step") or 0)
        if start_step:  # tells TensorBoard to forget what an earlier process wrote after the checkpoint
            log = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=self._begin(start_step), session_log=log))
        elif self._settings is not None:
            self._tell_settings(self._settings)

    def _begin(self, start_step: int) -> int:
        """The first place on the axis that a resumed run writes at, or one that lies before it."""
        if not self._counts:
            return start_step + 1
        newest = last_record(self._directory / "metrics.jsonl")  # cut at the checkpoint already
        return int((newest or {}).get(self._counts) or 0) + 1

    def _tell_settings(self, settings: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.hparams import api_pb2, summary_v2

        table = flat(settings)
        metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in _SHOWN_METRICS]
        experiment = api_pb2.Experiment(metric_infos=metrics)
        summaries = (_experiment(experiment), summary_v2.hparams_pb(table, start_time_secs=time.time()))
        for summary in summaries:
            self._writer.add_event(Event(wall_time=time.time(), step=0, summary=summary))

    def on_step(self, record: Record) -> None:
        self._pending.append((time.time(), False, record))
        if time.monotonic() - self._flushed > self._every_s:
            self._flush()

    def on_eval(self, record: Record) -> None:
        self._pending.append((time.time(), True, record))

    def on_event(self, kind: str, text: str) -> None:
        pass

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if self._writer is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for wall_time, evaluated, record in self._pending:
            found = numbers(record, evaluated=evaluated)
            values = [Summary.Value(tag=name, simple_value=value) for name, value in found.items()]
            samples = record.get("samples")
            if samples:
                values.append(_text(samples))
            at = int((plain(record.get(self._counts)) if self._counts else None) or record["step"])
            self._writer.add_event(Event(wall_time=wall_time, step=at, summary=Summary(value=values)))
        self._pending.clear()

    def close(self, summary: Record) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _experiment(experiment: Any) -> Any:
    """Which columns the table of settings has beside them."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    data = plugin_data_pb2.HParamsPluginData(experiment=experiment, version=metadata.PLUGIN_DATA_VERSION)
    value = Summary.Value(
        tag=metadata.EXPERIMENT_TAG, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])


def _text(samples: Sequence[Mapping[str, Any]]) -> Any:
    """Each sample as a text of its own: a fenced block, so that nothing in it is taken for Markdown."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text import metadata

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(samples))])
    texts = [sample_text(sample).encode("utf-8", "replace") for sample in samples]
    return Summary.Value(
        tag="samples",
        metadata=metadata.create_summary_metadata("samples", "what the model wrote"),
        tensor=TensorProto(dtype=DT_STRING, string_val=texts, tensor_shape=shape),
    )


def sample_text(sample: Mapping[str, Any]) -> str:
    """A prompt, what was written after it, and its reward, in Markdown."""
    parts = [f"reward {sample.get('reward')}"]
    for name in ("prompt", "text"):
        indented = "\n".join(f"    {line}" for line in str(sample.get(name, "")).splitlines())
        parts.append(f"{name}:\n\n{indented}")
    return "\n\n".join(parts)
