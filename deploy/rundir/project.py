"""Which state of the user's own project a run was begun from: the Git checkout that the user stands in."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

_PATIENCE_S = 2.0  # a run does not wait longer for its origin


def project_here(directory: Path | None = None) -> dict[str, Any] | None:
    """`name`, `commit`, and whether tracked files were `changed` since (None: not known in time). None: no checkout, no
    commit yet, or no Git."""
    place = directory or Path.cwd()
    top, commit = _git(place, "rev-parse", "--show-toplevel"), _git(place, "rev-parse", "--verify", "HEAD")
    if not top or not commit:
        return None
    changed = _git(place, "status", "--porcelain", "--untracked-files=no")
    return {"name": Path(top).name, "commit": commit, "changed": None if changed is None else bool(changed)}


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(directory), *arguments]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return found.stdout.strip()
