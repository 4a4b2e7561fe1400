"""The life of a run, the same for runs of every kind: prepare, drive, sum up, report, export. Whatever happens, it
leaves summary.json and report.html behind."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rollcall.cluster.books.settings_history import SettingsHistory
from rollcall.cluster.checkpoint import list_checkpoints
from rollcall.cluster.errors import BadInput, RollcallError, RunAlive, StoreUnavailable
from rollcall.cluster.files import read_json
from rollcall.deploy.config.recipe.language_config import ActingConfig
from rollcall.deploy.config.recipe.preference_config import RewardTrainConfig
from rollcall.deploy.drive.design.search import DesignDrive
from rollcall.deploy.drive.nested import NestedRuns, StepsTold
from rollcall.deploy.drive.offline import OfflineDrive, imitate
from rollcall.deploy.drive.online import OnlineDrive
from rollcall.deploy.drive.records import Changes, RunRecorder, warnings_told, write_summary
from rollcall.deploy.kinds.kind import Driven, NestedRun, StoredRun
from rollcall.deploy.kinds.loading import export_policy
from rollcall.deploy.kinds.preferences.reward_model import MODEL, REWARD_MODEL
from rollcall.deploy.kinds.recipes import kind_of_config
from rollcall.deploy.plan.planning import Plan
from rollcall.deploy.plan.shortage import memory_explained
from rollcall.deploy.report.recorders import Record, Recorder
from rollcall.deploy.report.run_lines import iter_jsonl
from rollcall.deploy.rundir.files import begin_run, driver_log
from rollcall.deploy.rundir.storage_faults import say_it_once, socket_path_fault, storage_fault
from rollcall.deploy.runtimes.library_settings import set_for_libraries


class Drive(Protocol):
    """One driver's part of a run, from its preparations to its last step."""

    facts: dict[str, Any]  # what it has to say of the run so far, for the summary
    plan: Plan | None  # once it is made

    def carry_out(self, *, resume: bool) -> str:
        """To the end, or to a checkpoint once a stop is requested. Returns the run's status."""

    def known_from(self, records: Iterable[Record]) -> dict[str, Any]:
        """What metrics.jsonl still says of a run that failed."""


def carry_out(
    run: StoredRun,
    *,
    resume: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    console: Sequence[Recorder] = (),
    changes: Changes | None = None,
) -> dict[str, Any]:
    """Trains in the run's directory, which has been begun; returns the summary, which is also summary.json. Once a stop
    is requested, the run ends with a checkpoint. `changes`: settings in which the config of a resumed run is not what
    it was.

    Raises:
      BadInput: before training began; a directory claimed for this run is removed again.
      Exception: whatever ended the run; its traceback is in <run>/logs/driver.log.
    """
    set_for_libraries()
    say_it_once()
    began = time.perf_counter()
    recorder = RunRecorder(run, console, changes)
    drive = _drive_of(run, recorder, stop_requested)
    summary: dict[str, Any] = {
        "status": "failed",
        "recipe": str(read_json(run.directory / "run.json").get("recipe", run.config.name)),
        "config_hash": recorder.segments.config_hash,
        "algorithm": run.config.algorithm_name,
        "seed": run.config.seed,
    }
    with driver_log(run.directory) as log, warnings_told(recorder):
        try:
            recorder.open_trackers()
            with memory_explained(lambda: drive.plan):
                summary["status"] = drive.carry_out(resume=resume)
        except BaseException as error:
            recorder.close({"status": "failed"})
            if not recorder.begun:
                _refuse(error, run, resume=resume)
            error.rollcall_log = run.directory / "logs" / "driver.log"  # type: ignore[attr-defined]
            log.error("the run ended with an error\n%s", traceback.format_exc())
            _sum_up_failed(error, run, drive, summary | {"wall_s": time.perf_counter() - began})
            raise
    summary |= {"wall_s": time.perf_counter() - began, **drive.facts}
    recorder.close(summary)
    _sum_up(run, summary)
    if run.kind.exports and list_checkpoints(run.directory):
        summary["policy"] = _export(run)
        _sum_up(run, summary)
    return summary


def prepare(members: Driven, stop_requested: Callable[[], bool] = lambda: False) -> None:
    """Makes, once per run directory, what the members load.

    Raises:
      RollcallError: when a stop was requested before it was made.
    """
    for preparation in members.preparations():
        if isinstance(preparation, NestedRun):
            run_nested(preparation)
        else:
            imitate(preparation, stop_requested)


def train_reward_model(
    config: RewardTrainConfig,
    directory: Path,
    *,
    on_step: Callable[[], None],
    stop_requested: Callable[[], bool] = lambda: False,
) -> Path | None:
    """A kinds.preference_trainer.TrainRewardModel. A run that was cut off begins anew: it is short."""
    summary: Mapping[str, Any] = read_json(directory / "summary.json")
    if summary.get("status") != "completed":
        shutil.rmtree(directory, ignore_errors=True)
        nested = NestedRun(REWARD_MODEL, config, directory)
        summary = run_nested(nested, console=[StepsTold(on_step)], stop_requested=stop_requested)
    return directory / MODEL if summary["status"] == "completed" else None


def drive_alone(
    config: ActingConfig,
    directory: Path,
    recorder: Recorder,
    *,
    resume: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Status and facts of a run with actors of which nothing is summed up: for measurements.

    Raises:
      BadInput, RollcallError: as `carry_out`.
    """
    factory = kind_of_config(config).make(config, directory)
    assert factory.drive == "online"
    segments = SettingsHistory.single(config.config_hash)
    drive = OnlineDrive(config, factory, recorder, segments, stop_requested, NESTED)
    return {"status": drive.carry_out(resume=resume), **drive.facts}


def run_nested(
    nested: NestedRun,
    *,
    console: Sequence[Recorder] = (),
    stop_requested: Callable[[], bool] = lambda: False,
) -> Mapping[str, Any]:
    """A run of another kind, in its own directory; its summary."""
    nested.directory.mkdir(parents=True, exist_ok=True)
    config_hash = begin_run(nested.config, nested.directory, recipe=nested.directory.name)
    run = StoredRun(nested.kind, nested.config, nested.directory, config_hash)
    summary = carry_out(run, console=console, stop_requested=stop_requested)
    nested.told(summary)
    return summary


NESTED = NestedRuns(prepare, train_reward_model)  # what a drive has made before its own run, or while it goes on


def _drive_of(run: StoredRun, recorder: RunRecorder, stop_requested: Callable[[], bool]) -> Drive:
    members = run.kind.make(run.config, run.directory)
    if members.drive == "offline":
        return OfflineDrive(run, members, recorder, stop_requested, NESTED)
    if members.drive == "collecting":
        from rollcall.deploy.drive.collecting import collecting

        around = partial(collecting, run, members, recorder, stop_requested)
        return OfflineDrive(run, members, recorder, stop_requested, NESTED, around)
    if members.drive == "search":
        return DesignDrive(run, recorder, stop_requested)
    return OnlineDrive(run.config, members, recorder, recorder.segments, stop_requested, NESTED)


def _refuse(error: BaseException, run: StoredRun, *, resume: bool) -> None:
    """Raises BadInput: where the error is of what was asked for, and nothing has begun. Nothing is kept of it then."""
    too_long = socket_path_fault(error)
    refused = (
        bool(too_long)
        or isinstance(error, BadInput | RunAlive)
        or (isinstance(error, StoreUnavailable) and run.config.names_store)
    )
    if refused:
        if not resume and not isinstance(error, RunAlive):
            shutil.rmtree(run.directory, ignore_errors=True)
        raise BadInput(too_long or str(error)) from error


def _sum_up(run: StoredRun, summary: Record) -> None:
    """Raises RollcallError: where a disk does not take it; in one line."""
    try:
        write_summary(run.directory, summary)
    except OSError as error:
        if refusal := storage_fault(error):
            raise _no_room(refusal, run) from error
        raise


def _no_room(refusal: str, run: StoredRun) -> RollcallError:
    return RollcallError(f"{refusal}: make room, and go on with: rollcall resume {run.directory}")


def _sum_up_failed(error: BaseException, run: StoredRun, drive: Drive, summary: dict[str, Any]) -> None:
    """What can still be said of a run whose driver failed.

    Raises:
      RollcallError: where it failed over a disk; in one line.
    """
    known = read_json(run.directory / "summary.json")
    found = drive.known_from(iter_jsonl(run.directory / "metrics.jsonl"))
    what = error.headline if isinstance(error, RollcallError) else str(error)
    text = " ".join(f"{type(error).__name__}: {what}".split())
    refusal = storage_fault(error)
    try:
        write_summary(run.directory, {**found, **known, **drive.facts, **summary, "error": text[:2000]})
    except OSError as again:
        refusal = refusal or storage_fault(again)
    if refusal:
        raise _no_room(refusal, run) from error


def _export(run: StoredRun) -> str | None:
    """The policy as a Hugging Face directory inside the run's. If that fails, the run still ended as it did."""
    with driver_log(run.directory) as log:
        try:
            return str(export_policy(run.directory))
        except Exception:
            log.exception("the policy was not exported; to try again: rollcall export %s", run.directory)
            return None
