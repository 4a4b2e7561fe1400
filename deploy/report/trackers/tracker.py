"""What a tracker is, and how one stands beside a run: in a thread of its own, so that a server that is slow or gone
costs the run nothing. Never touches the run: what a tracker does not take is told, and the run goes on."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rollcall.cluster.files import read_json, write_aside
from rollcall.cluster.inputs.passwords import without_passwords
from rollcall.deploy.report.recorders import Record, Recorder, plain
from rollcall.deploy.report.tags import numbers

LEARNER_STEP = "learner_step"  # what a step is called where it is a number among others
_IDS = "trackers.json"  # of a run directory: what its runs are called at the trackers, for when it is resumed
_MOST_WAITING = 20_000  # steps that a tracker may be behind, before some are left out
_log = logging.getLogger("rollcall")


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run before it begins."""

    name: str
    directory: Path
    settings: Mapping[str, bool | int | float | str]  # by dotted name
    known_id: str | None  # what the run is called there, of one that is resumed


class Tracker(Protocol):
    """One run at a tracker. All calls but the first come from one thread, in order; each may take its time."""

    def open(self, run: TrackedRun) -> str:
        """What the run is called there. Called once, before the run begins.

        Raises:
          BadInput: in one line, where it cannot be opened.
        """

    def log(self, step: int, values: Mapping[str, float], *, unix_s: float) -> None:
        """Numbers of one learner step, or of the evaluation after it, by tag."""

    def samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """What a language model wrote: `prompt text reward`."""

    def close(self, status: str, summary: Mapping[str, float]) -> None:
        """The run has ended: `status` is "completed", "stopped" or "failed"."""


class Aside:
    """A Recorder that hands everything to a tracker, in a thread of its own."""

    def __init__(self, name: str, tracker: Tracker, *, close_timeout_s: float) -> None:
        self._name = name
        self._tracker = tracker
        self._timeout_s = close_timeout_s
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_MOST_WAITING)
        self._failed: str | None = None  # why it takes nothing any more
        self._left_out = 0
        self._thread: threading.Thread | None = None

    def open(self, run: TrackedRun) -> None:
        """Raises BadInput: as Tracker.open."""
        _remember(run.directory, self._name, self._tracker.open(run))
        self._thread = threading.Thread(target=self._work, name=f"rollcall-{self._name}", daemon=True)
        self._thread.start()

    def on_start(self, info: Record) -> None: ...

    def on_step(self, record: Record) -> None:
        step, now = int(record["step"]), time.time()
        values, samples = numbers(record), record.get("samples")
        self._hand(lambda: self._tracker.log(step, values, unix_s=now))
        if samples:
            shown = [plain(sample) for sample in samples]
            self._hand(lambda: self._tracker.samples(step, shown))

    def on_eval(self, record: Record) -> None:
        step, now, values = int(record["step"]), time.time(), numbers(record, evaluated=True)
        self._hand(lambda: self._tracker.log(step, values, unix_s=now))

    def on_event(self, kind: str, text: str) -> None: ...

    def close(self, summary: Record) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        status = str(summary.get("status", "failed"))
        final = {key: float(value) for key, value in summary.items() if isinstance(value, int | float)}
        self._hand(lambda: self._tracker.close(status, final), at_once=True)
        self._hand(None, at_once=True)
        thread.join(self._timeout_s)
        if self._failed is not None:
            _log.warning("%s took nothing more from there on: %s", self._name, self._failed)
        elif thread.is_alive():
            _log.warning("%s has not taken the rest within %g s, and is left", self._name, self._timeout_s)
        if self._left_out:
            _log.warning("%s was so far behind that %d steps were left out", self._name, self._left_out)

    def _hand(self, call: Callable[[], None] | None, *, at_once: bool = False) -> None:
        """`at_once`: what must arrive; room is made for it."""
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._left_out += 1
            if at_once:
                self._waiting.get_nowait()
                self._waiting.put_nowait(call)

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            if self._failed is None:
                try:
                    call()
                except Exception as error:  # a tracker's own, of whatever kind
                    self._failed = f"{type(error).__name__}: {said_by(error)}"


class Guarded:
    """A Recorder of the user's: what it raises is told once, and it is asked nothing more."""

    def __init__(self, name: str, recorder: Recorder) -> None:
        self._name = name
        self._recorder: Recorder | None = recorder

    def on_start(self, info: Record) -> None:
        self._tell(lambda recorder: recorder.on_start(info))

    def on_step(self, record: Record) -> None:
        self._tell(lambda recorder: recorder.on_step(record))

    def on_eval(self, record: Record) -> None:
        self._tell(lambda recorder: recorder.on_eval(record))

    def on_event(self, kind: str, text: str) -> None:
        self._tell(lambda recorder: recorder.on_event(kind, text))

    def close(self, summary: Record) -> None:
        self._tell(lambda recorder: recorder.close(summary))

    def _tell(self, told: Callable[[Recorder], None]) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        try:
            told(recorder)
        except Exception as error:
            self._recorder = None
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            _log.warning("the recorder %s fails (%s), and is asked nothing more", self._name, text)


def said_by(error: BaseException) -> str:
    """What a tracker's client says, in one line, for messages and logs: it may have all of $MLFLOW_TRACKING_URI."""
    return without_passwords(" ".join(str(error).split()))[:300]


def known_id(run_directory: Path, tracker: str) -> str | None:
    """What a run is called at a tracker, of one that was begun before."""
    found = read_json(run_directory / _IDS).get(tracker)
    return found if isinstance(found, str) else None


def _remember(run_directory: Path, tracker: str, name: str) -> None:
    known = read_json(run_directory / _IDS) | {tracker: name}
    write_aside(run_directory / _IDS, json.dumps(known, indent=1) + "\n")
