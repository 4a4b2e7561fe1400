"""Run directories: found, and claimed for a new run."""

from __future__ import annotations

import shlex
from itertools import count
from pathlib import Path

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.deploy.rundir.jobs import check_runs_root, runs_root


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


def next_directory(name: str) -> Path:
    """The one that `claim_directory` would make now, of a name that was not asked for."""
    names = (name if attempt == 1 else f"{name}-{attempt}" for attempt in count(1))
    return next(path for path in (runs_root() / own for own in names) if not path.exists())


def claim_directory(name: str, *, explicit: bool) -> Path:
    """Makes runs/<name> in one move, so that two runs never share one. A name that was not asked for gets a number.
    Nobody else may enter it until its owner opens it (chmod): no command ever changes the mode of one that is there.

    Raises:
      BadInput: when an explicit name is taken, or the directory cannot be made.
    """
    check_runs_root()
    root = runs_root()
    for attempt in range(1, 100_000):
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            root.mkdir(mode=0o775, exist_ok=True)  # whoever may write into it could put another run in its place
            path.mkdir(mode=0o700)
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
