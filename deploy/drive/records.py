"""What a run writes down of itself while it goes and when it ends, the same for runs of every kind."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rollcall.cluster.books.settings_history import (
    SettingsHistory,
    SettingsSpan,
    read_settings_history,
    write_settings_history,
)
from rollcall.cluster.checkpoint import Manifest
from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import refused_by_disk, write_aside
from rollcall.deploy.kinds.kind import StoredRun
from rollcall.deploy.report.page import write_report
from rollcall.deploy.report.phase_line import PHASE
from rollcall.deploy.report.recorders import JsonLines, Record, Recorder, plain
from rollcall.deploy.report.tensorboard import TensorBoard
from rollcall.deploy.report.trackers.opening import open_recorders
from rollcall.deploy.rundir.files import command_line, write_config
from rollcall.deploy.rundir.printed_logs import PrintedLogs
from rollcall.deploy.rundir.storage_faults import storage_fault

RESERVE, RESERVE_BYTES = ".reserve", 1 << 16

_log = logging.getLogger("rollcall")

Changes = Mapping[str, tuple[Any, Any]]  # setting -> (before, from now on)


class RunRecorder:
    """Tells everybody who records of a run, and books that it has begun: before that, nothing of a refused run is kept
    or changed. What an earlier process of a resumed run summed up is void from then on; and the settings before a
    change are kept beside config.yaml, as config.0.yaml and so on."""

    def __init__(self, run: StoredRun, console: Sequence[Recorder], changes: Changes | None) -> None:
        """`changes`: settings in which a resumed run's config is not what it was: a new segment of the run."""
        self._run = run
        logs = PrintedLogs(run.directory)
        tensorboard = TensorBoard(
            run.directory,
            settings=run.config.resolved().model_dump(mode="json", exclude={"redis": True, "recorders": True}),
            over_counted=run.config.recorders.tensorboard.axis == "env_steps",
        )
        self._console = tuple(console)
        self._recorders: list[Recorder] = [JsonLines(run.directory), tensorboard, logs, *console]
        self._known = read_settings_history(run.directory, config_hash=run.config_hash)
        self.segments = self._known
        if changes:
            self.segments = self._known.followed_by(_new_segment(run, changes))
        self.begun = False

    def open_trackers(self) -> None:
        """Those that the run's `recorders` section asks for. Raises BadInput: as open_recorders."""
        self._recorders += open_recorders(self._run.config, self._run.directory)

    def on_start(self, info: Record) -> None:
        self.begun = True
        info = {**info, **_told_of(self._run)}
        (self._run.directory / "summary.json").unlink(missing_ok=True)
        reserve_room(self._run.directory)
        self._each(lambda recorder: recorder.on_start(info))
        self._book(self.segments.beginning_at(int(info["start_step"])))

    def on_step(self, record: Record) -> None:
        self._each(lambda recorder: recorder.on_step(record))

    def on_eval(self, record: Record) -> None:
        self._each(lambda recorder: recorder.on_eval(record))

    def on_event(self, kind: str, text: str) -> None:
        if kind == PHASE:  # of a start that may be refused yet: nothing of it is written down
            for recorder in self._console:
                recorder.on_event(kind, text)
            return
        self._each(lambda recorder: recorder.on_event(kind, text))

    def _each(self, told: Callable[[Recorder], None]) -> None:
        """Who cannot write any more, since the disk is full, records nothing from then on: the run goes on."""
        for recorder in tuple(self._recorders):
            try:
                told(recorder)
            except OSError as error:
                if not (refusal := storage_fault(error)):
                    raise
                self._recorders.remove(recorder)
                _log.warning("%s records nothing from here on: %s", type(recorder).__name__, refusal)

    def close(self, summary: Record) -> None:
        """A recorder that cannot close (a full disk) must not hide how the run ended."""
        for recorder in self._recorders:
            try:
                recorder.close(summary)
            except Exception:
                _log.exception("%s did not close", type(recorder).__name__)

    def _book(self, segments: SettingsHistory) -> None:
        directory = self._run.directory
        if segments != self._known:
            write_settings_history(directory, segments)
        if len(segments.all) > len(self._known.all):
            shutil.copyfile(directory / "config.yaml", directory / f"config.{len(self._known.all) - 1}.yaml")
            write_config(self._run.config, directory)
            self.on_event("segment", str(segments.all[-1]))


def _told_of(run: StoredRun) -> dict[str, Any]:
    greedy = getattr(getattr(run.config, "eval", None), "greedy", None)
    return {
        "name": run.config.name,
        "run_directory": str(run.directory),
        "runtime": getattr(run.config, "runtime", None),
        "eval_mode": None if greedy is None else "greedy" if greedy else "sampled",
    }


def _new_segment(run: StoredRun, changes: Changes) -> SettingsSpan:
    """It begins where the run goes on, which is known when it does."""
    return SettingsSpan(
        step=sys.maxsize,
        config_hash=run.config.config_hash,
        changes=dict(changes),
        began_unix_s=round(time.time(), 3),
        command=command_line(),
    )


def refuse_foreign(segments: SettingsHistory, checkpoint: Path, manifest: Manifest) -> None:
    """Raises BadInput: when a checkpoint was not made under the run's settings, of now or before."""
    if not segments.made(manifest.config_hash):
        raise BadInput(
            f"{checkpoint}: made under another config ({manifest.config_hash[:12]}, this one is "
            f"{segments.config_hash[:12]}): put back the config.yaml that the run wrote; settings are changed "
            "with rollcall resume RUN key=value"
        )


def reserve_room(directory: Path) -> None:
    """For the summary of a run that ends over a full disk."""
    with contextlib.suppress(OSError):
        (directory / RESERVE).write_bytes(bytes(RESERVE_BYTES))


def write_summary(directory: Path, summary: Mapping[str, Any]) -> None:
    """summary.json, for which room was reserved, and report.html that shows it, if there is room for that too.

    Raises:
      OSError: where the disk does not take the summary.
    """
    content = json.dumps(plain(summary), indent=1) + "\n"
    try:
        write_aside(directory / "summary.json", content)
    except OSError as error:
        if not refused_by_disk(error):
            raise
        (directory / RESERVE).unlink(missing_ok=True)
        write_aside(directory / "summary.json", content)
    (directory / RESERVE).unlink(missing_ok=True)
    try:
        write_report(directory)
    except OSError as error:
        if not refused_by_disk(error):
            raise
        _log.error("no report: %s; to make it: rollcall report %s", error, directory)


@contextlib.contextmanager
def warnings_told(recorder: Recorder) -> Iterator[None]:
    """Warnings in Rollcall's log are events of the run: prompts that were left out, say. Those of other threads are in
    the log alone: recorders are the driver's."""
    driver = threading.get_ident()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == driver and record.levelno == logging.WARNING:  # what is worse, the command says itself
                recorder.on_event("warning", record.getMessage().partition("\n")[0])

    handler, logger = Handler(level=logging.WARNING), logging.getLogger("rollcall")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
