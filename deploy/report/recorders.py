"""What a run writes down as it goes: lines of JSON. Events are tensorboard.py's, what it shows progress.py's.
A recorder stands in the learner's loop, so `on_step` costs microseconds; it must never touch the run itself."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from rollcall.cluster.files import append_whole
from rollcall.deploy.report.run_lines import last_record, truncate_after

_log = logging.getLogger(__name__)
Record = Mapping[str, Any]

_ALWAYS = ("step", "epoch", "policy_version", "wait_batch_s", "update_s", "publish_s", "lag_max", "lag_mean")
# What every line of metrics.jsonl has, by what the run counts.
STEP_KEYS = {
    "env_steps": (*_ALWAYS, "return_mean", "env_steps"),
    "tokens": (*_ALWAYS, "reward_mean", "tokens"),
}


class Recorder(Protocol):
    """Told what happens, in order, by one thread. `on_start` comes once per process, also when a run is resumed.

    A record's `step` is v, the batches consumed before it: it counts from 0. A step may come again after a restore.
    """

    def on_start(self, info: Record) -> None:
        """`info` has at least `start_step` (learner steps already done), `epoch`, `total_learner_steps` (None when only
        env steps are bounded) and `total_env_steps`; `counts` is "env_steps" (also when it is absent) or "tokens";
        `name` and `run_directory` are the run's; `runtime` and `eval_mode` (greedy, sampled) may be None."""

    def on_step(self, record: Record) -> None:
        """One learner step: STEP_KEYS of what is counted and whatever the algorithm adds; what does not exist yet is
        None or NaN. A step of a language model may show a few `samples`: mappings with `prompt text reward`."""

    def on_eval(self, record: Record) -> None:
        """One finished evaluation: at least `step policy_version mean std n`, and `env_steps` or `tokens`. Where `unit`
        is "exact match", the mean is the fraction of problems solved."""

    def on_event(self, kind: str, text: str) -> None:
        """Something worth a line: a restart, a drop, a checkpoint, a warning. Whoever shows a run is also told of the
        phases of its start, which nobody writes down: `phase` with its name, and without a text once it is over."""

    def close(self, summary: Record) -> None:
        """The run has ended, in whatever way; `summary` is what summary.json holds. A second call does nothing."""


def plain(value: Any) -> Any:
    """JSON's idea of a value: numpy and torch scalars as numbers, what is not finite as None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return plain(value.item())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


class JsonLines:
    """metrics.jsonl (one line per learner step), evals.jsonl and events.jsonl of a run directory, flushed per line.

    Adds `elapsed_s` to each line: seconds of training so far, all the run's processes together. What the language model
    wrote goes to samples.jsonl, so that metrics.jsonl stays numbers.
    """

    def __init__(self, run_directory: Path) -> None:
        self._directory = run_directory
        self._files: dict[str, FileIO] = {}
        self._refused = False  # whether the last line found no room
        self._no_step: dict[str, Any] = dict.fromkeys(STEP_KEYS["env_steps"])
        self._step = 0
        self._offset_s = 0.0
        self._began = time.monotonic()

    def _write(self, name: str, record: Record) -> None:
        elapsed_s = round(self._offset_s + time.monotonic() - self._began, 3)
        self._append(name, {**record, "elapsed_s": elapsed_s})

    def _append(self, name: str, record: Record) -> None:
        """A line is written whole or not at all; one that a disk refuses is dropped, and the run goes on."""
        line = json.dumps(plain(record), allow_nan=False) + "\n"
        try:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = (self._directory / f"{name}.jsonl").open("ab", buffering=0)
            append_whole(file.fileno(), line.encode())
            self._refused = False
        except OSError as error:
            if not self._refused:
                self._refused = True  # first: the warning is an event too, and finds no room either
                _log.warning(
                    "lines of %s.jsonl are dropped (%s): make room in %s", name, error.strerror, self._directory
                )

    def on_start(self, info: Record) -> None:
        self._no_step = dict.fromkeys(STEP_KEYS[info.get("counts") or "env_steps"])
        self._rewind(int(info.get("start_step") or 0))
        newest = last_record(self._directory / "metrics.jsonl")
        self._offset_s = float(newest.get("elapsed_s") or 0.0) if newest else 0.0
        self._began = time.monotonic()

    def _rewind(self, step: int) -> None:
        """Forgets what was recorded of learner step `step` and later ones: it is about to happen again."""
        self.close({})
        truncate_after(self._directory / "metrics.jsonl", step - 1)
        truncate_after(self._directory / "samples.jsonl", step - 1)
        truncate_after(self._directory / "evals.jsonl", step)  # an evaluation's step counts the batches consumed
        self._step = step

    def on_step(self, record: Record) -> None:
        step = int(record["step"])
        if step < self._step:
            self._rewind(step)
        self._step = step + 1
        line = {**self._no_step, **record}
        samples = line.pop("samples", None)
        if samples:
            self._append("samples", {"step": step, "samples": samples})
        self._write("metrics", line)

    def on_eval(self, record: Record) -> None:
        self._write("evals", record)

    def on_event(self, kind: str, text: str) -> None:
        self._write("events", {"step": self._step, "kind": kind, "text": text})

    def close(self, summary: Record) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
