"""The recorders that a run's `recorders` section asks for."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.import_path import import_object
from rollcall.deploy.config.recipe.recorders_config import RecordersConfig
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.report.recorders import Recorder
from rollcall.deploy.report.tags import flat
from rollcall.deploy.report.trackers.mlflow_runs import MlflowRun
from rollcall.deploy.report.trackers.tracker import Aside, Guarded, TrackedRun, Tracker, known_id
from rollcall.deploy.report.trackers.trackio_runs import TrackioRun
from rollcall.deploy.report.trackers.wandb_runs import WandbRun

_MAKES: dict[str, Callable[[Any], Tracker]] = {"wandb": WandbRun, "mlflow": MlflowRun, "trackio": TrackioRun}
# What a tracker needs beside the package of its name.
_ALSO = {"mlflow": ("sqlalchemy", "alembic")}
_METHODS = ("on_start", "on_step", "on_eval", "on_event", "close")


def open_recorders(config: RootConfig, run_directory: Path) -> list[Recorder]:
    """Opened where they have something to open: a run at a tracker begins with this.

    Raises:
      BadInput: in one line, where a package is missing, a tracker cannot be opened, or an own recorder is none.
    """
    section = config.recorders
    chosen = {name: found for name in _MAKES if (found := getattr(section, name)) is not None}
    for name in chosen:
        _require(name)
    opened: list[Recorder] = [Guarded(path, _own(path)) for path in section.own]
    settings = flat(config.resolved().model_dump(mode="json", exclude={"redis": {"url"}, "recorders": True}))
    trackers: list[Aside] = []
    for name, found in chosen.items():
        aside = Aside(name, _MAKES[name](found), close_timeout_s=section.close_timeout_s)
        try:
            aside.open(TrackedRun(config.name, run_directory, settings, known_id(run_directory, name)))
        except BaseException:
            for other in trackers:  # or its run would be going on there for ever
                other.close({"status": "failed"})
            raise
        trackers.append(aside)
    return [*opened, *trackers]


def recorders_of(section: RecordersConfig) -> list[str]:
    """Their names, for people."""
    return [*(name for name in _MAKES if getattr(section, name) is not None), *section.own]


def _require(name: str) -> None:
    missing = next((package for package in (name, *_ALSO.get(name, ())) if find_spec(package) is None), None)
    if missing is not None:
        raise BadInput(f"recorders.{name}: needs the package {missing}: pip install 'rollcall-rl[{name}]'")


def _own(path: str) -> Recorder:
    found = import_object(path)
    try:
        recorder = found() if isinstance(found, type) else found
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise BadInput(f"recorders.own = {path!r}: {path}() fails ({text}): give it no arguments, or fix it") from error
    missing = [name for name in _METHODS if not callable(getattr(recorder, name, None))]
    if missing:
        raise BadInput(f"recorders.own = {path!r}: no recorder: it has no {', '.join(missing)}")
    return recorder  # type: ignore[return-value]
