"""Runs begun and gone on with from a program: what `rollcall train` and `rollcall resume` do, as functions."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

from rollcall.cluster.checkpoint import latest_checkpoint
from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import read_json
from rollcall.cluster.inputs import given
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.config.settings import CALLER, TAGS, Settings, dotted_values, recipe_name
from rollcall.deploy.drive.changes import changed, refuse_no_more
from rollcall.deploy.drive.lifecycle import carry_out
from rollcall.deploy.drive.records import Changes
from rollcall.deploy.drive.signals import stop_on_signals
from rollcall.deploy.kinds.beginning import new_run
from rollcall.deploy.kinds.kind import StoredRun
from rollcall.deploy.kinds.recipes import Recipe, kind_of_config, load_recipe, load_run
from rollcall.deploy.python.notebook import NotebookCell, is_notebook
from rollcall.deploy.python.result import Result
from rollcall.deploy.python.rows import with_rows_kept
from rollcall.deploy.python.stopping import Stop, StopWatch
from rollcall.deploy.report.phase_line import redraws
from rollcall.deploy.report.recorders import Recorder
from rollcall.deploy.rundir.directories import find_run

_NAMED = "run"  # what runs are called whose settings came as a dict without a name


def train(
    recipe: str | Path | Mapping[str, Any] | RootConfig,
    overrides: Mapping[str, Any] | None = None,
    /,
    *,
    recorders: Sequence[Recorder] = (),
    stop: Stop = None,
    progress: bool = False,
    **settings: Any,
) -> Result:
    """Trains, and returns what came of it.

    recipe: a shipped recipe's name, a YAML file, the settings themselves as a dict, or a configuration. `overrides` and
      `settings` are written over it, nested or dotted: `train("cartpole-ppo", {"algorithm.clip_range": 0.1}, seed=1,
      actors={"num": 2})`. Where a recipe names an env, a task, an algorithm or a reward as module:name, the class or
      function itself may stand. One that no other process could import (of a notebook, a lambda) is sent to the run's
      own processes by value; a reward cannot be, since the reward service imports it. Where it names a file of rows
      (`task.path`, `data.train`), the rows may stand: a list of dicts, a `datasets.Dataset`, a DataFrame.
    recorders: are told of every learner step, evaluation and event, in this process; see `report.recorders.Recorder`.
    stop: an event, or a function of the newest record (of a learner step or of an evaluation). Once it is set, or says
      True, the run stops with a checkpoint.
    progress: shows what `rollcall train` shows: a live view on a terminal, a cell that is redrawn in a notebook, lines
      elsewhere.

    In the main thread Ctrl-C stops with a checkpoint, as on the command line. A script that trains does so under
    `if __name__ == "__main__":`: envs in processes of their own import it.

    Raises:
      BadInput: in one line, on anything that `rollcall train` would refuse with exit code 2.
      Exception: whatever ended the run; its traceback is in RUN/logs/driver.log.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(1)  # an env's process that imports the script; the one that began it says what is wrong
    watch = StopWatch(stop)
    written = with_rows_kept({**(overrides or {}), **settings})
    if isinstance(recipe, RootConfig):
        if written:
            raise ValueError(f"settings {sorted(written)} go with a recipe; of a config use model_copy(update=...)")
        found, named = Recipe(kind_of_config(recipe), recipe.resolved()), recipe.name
    elif isinstance(recipe, Mapping):
        found = load_recipe(Settings(source=CALLER), values=_merged(with_rows_kept(recipe), written))
        named = found.config.name
    else:
        found, named = load_recipe(recipe, values=written), recipe_name(recipe)
    run = new_run(found, named=named, explicit="name" in written)
    return _carried_out(run, recorders, watch, progress)


def resume(
    run: str | Path | Result,
    overrides: Mapping[str, Any] | None = None,
    /,
    *,
    recorders: Sequence[Recorder] = (),
    stop: Stop = None,
    progress: bool = False,
    **settings: Any,
) -> Result:
    """Goes on with a run from its newest checkpoint, as it was or with other settings, as `rollcall resume` does. A run
    that is completed, with nothing changed, is returned as it is. The arguments are those of `train`. A program that is
    run anew gives the objects again that the run began with: they have to be the same, as their code says.

    Raises:
      BadInput: in one line, on anything that `rollcall resume` would refuse.
      Exception: whatever ended the run.
    """
    watch = StopWatch(stop)
    directory = run.run_directory if isinstance(run, Result) else find_run(run)
    written = dotted_values({**(overrides or {}), **settings})
    named = {key: _name_of(key, value) for key, value in written.items()}  # which this process has from here on
    before = load_run(directory)
    again = {key for key, name in named.items() if name is not None and name == _named(before, key)}
    stored, changes = changed(before, [_override(key, written[key]) for key in written if key not in again])
    summary = read_json(directory / "summary.json")
    if summary.get("status") == "completed" and not changes:
        return Result(directory, summary)
    if changes:
        refuse_no_more(stored.config, latest_checkpoint(directory)[1], changes)
    return _carried_out(stored, recorders, watch, progress, resume=True, changes=changes)


def _carried_out(
    run: StoredRun,
    recorders: Sequence[Recorder],
    watch: StopWatch,
    progress: bool,
    *,
    resume: bool = False,
    changes: Changes | None = None,
) -> Result:
    cell = NotebookCell() if progress and is_notebook() else None
    stream = sys.stdout if cell is None else cell.stream
    shown: list[Recorder] = [] if cell is None else [cell]
    if progress:
        print(f"run directory: {run.directory}", file=stream, flush=True)
        shown.append(run.kind.console(stream, live=cell is None and redraws(stream)))
    with stop_on_signals(run.directory) as signalled:
        summary = carry_out(
            run,
            resume=resume,
            stop_requested=lambda: signalled.is_set() or watch.requested(),
            console=[*shown, *recorders, watch],
            changes=changes,
        )
    for line in run.kind.closing_lines(summary, run.directory) if progress else ():
        print(line, file=stream)
    return Result(run.directory, summary)


def _merged(recipe: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """A dict of settings with others over it, both by dotted keys."""
    if not recipe:
        raise BadInput(f"the recipe is an empty dict ({CALLER}): give its settings, or a shipped recipe's name")
    return {"name": _NAMED, **dotted_values(recipe), **dotted_values(written)}


def _name_of(key: str, value: Any) -> str | None:
    """What an object is called in settings; None: it is none."""
    return given.name_of(value, kept_as=key.partition(".")[0]) if isinstance(value, type | FunctionType) else None


def _named(run: StoredRun, key: str) -> Any:
    """What a setting of a run names: of a section the env, task or algorithm."""
    written = run.written.get(tuple(key.split(".")))
    return next((written[tag] for tag in TAGS if tag in written), None) if isinstance(written, Mapping) else written


def _override(key: str, value: Any) -> str:
    """As the command line has it. Raises BadInput: for a class, a function or an object."""
    try:
        return f"{key}={json.dumps(value, default=_plain)}"
    except TypeError:
        raise BadInput(
            f"{key} (resume(...)): is a {type(value).__name__}, and not the object that the run began with, with which "
            "it goes on: give that one, or begin a new run; what may change are numbers and names"
        ) from None


def _plain(value: Any) -> Any:
    """numpy's and torch's numbers, and paths."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError
