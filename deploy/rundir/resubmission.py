"""A command that is submitted again: it goes on with the run that it began before. Knows run directories; must never
know how training works."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from rollcall.cluster.books.settings_history import changes_between
from rollcall.cluster.checkpoint import list_checkpoints
from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import read_json
from rollcall.cluster.store.run_lock import DirectoryLock
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.config.settings import COMMAND_LINE, NO_PART_OF_THE_RESULT, parse_yaml
from rollcall.deploy.rundir.jobs import current_job, runs_root

# What a run that has no checkpoint yet leaves, and must not find when it begins again. Models made for it are kept.
_BOOKS = ("redis", "books", "checkpoints", "logs", "tensorboard")
_RECORDS = ("metrics.jsonl", "evals.jsonl", "events.jsonl", "summary.json", "report.html")
_RUNTIME = "runtime"
_UNWRITTEN = {"logs", "run.json", "run.json.new", "config.yaml.new"}


def as_begun(config: RootConfig, begun: RootConfig, *, chosen: Collection[str]) -> RootConfig:
    """`config`, with the runtime that `auto` came to when the run was begun: in a job and outside of one it comes to
    different ones. `chosen`: settings that somebody wrote, who means what is written."""
    runtime = getattr(begun, _RUNTIME, None)
    if runtime is None or _RUNTIME in chosen or not hasattr(config, _RUNTIME):
        return config
    return config.model_copy(update={_RUNTIME: runtime})


def find_to_go_on_with(
    config: RootConfig,
    *,
    explicit: bool,
    wanted: bool,
    read: Callable[[Path], RootConfig],
    chosen: Collection[str] = (),
) -> Path | None:
    """The run directory that this command goes on with: where the run has a name of its own (`explicit`), that run has
    begun before, and this is a job or going on is `wanted`. None: the run is a new one.

    `read` gives the settings of a run directory as this release knows them; `chosen` as for `as_begun`.

    Raises:
      BadInput: when the run of that name was begun with other settings.
    """
    if wanted and not explicit:
        raise BadInput(f"--resume ({COMMAND_LINE}): say which run to go on with: name=...")
    name = config.name
    directory = runs_root() / name
    if not explicit or not (wanted or current_job() is not None):
        return None
    if not (directory / "config.yaml").is_file():
        if directory.is_dir() and {path.name for path in directory.iterdir()} <= _UNWRITTEN:
            shutil.rmtree(directory)  # of a driver that was killed before it had written what the run is
        return None
    begun = read(directory)
    both = (begun, as_begun(config, begun, chosen=chosen))
    before, now = (parse_yaml(settings.to_yaml(), name).tree for settings in both)
    changes = {
        key: pair
        for key, pair in changes_between(before, now).items()
        if key.partition(".")[0] not in NO_PART_OF_THE_RESULT
    }
    if changes:
        texts = ", ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in list(changes.items())[:4])
        raise BadInput(
            f"name = {name!r}: {directory} was begun with other settings ({texts}): go on with the same ones, choose "
            f"another name, or change them with rollcall resume {directory} key=value"
        )
    return directory


def take_up(directory: Path) -> bool | None:
    """Says how a command that is submitted again goes on: True: from a checkpoint; False: there is none, and the run
    begins anew in a directory that was cleared for it; None: nothing is left to do.

    Raises:
      RunAlive: when a driver has just begun there.
    """
    print(f"run directory: {directory}", flush=True)
    if read_json(directory / "summary.json").get("status") == "completed":
        print("the run is completed: nothing to go on with", flush=True)
        return None
    checkpoints = list_checkpoints(directory)
    if checkpoints:
        print(f"going on with the run from {checkpoints[-1].name}", flush=True)
        return True
    print("the run has no checkpoint yet: it begins again", flush=True)
    lock = DirectoryLock(directory)
    try:
        for name in _BOOKS:
            shutil.rmtree(directory / name, ignore_errors=True)
        for name in _RECORDS:
            (directory / name).unlink(missing_ok=True)
    finally:
        lock.release()
    return False
