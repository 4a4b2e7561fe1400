"""A candidate's policy on film: `rollcall eval --video` in a process of its own, which a renderer that hangs or dies
takes with it and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rollcall.deploy.drive.child_process import child_command

TIMEOUT_S = 300.0
_COMPLAINT = "rollcall: error: "


def film(run: Path, path: Path) -> str | None:
    """Films one episode, unless there is a film already. Why there is none, in one line."""
    if path.exists():
        return None
    aside = path.with_name("video.making.gif")
    command = child_command("eval", str(run), "--episodes", "1", "--video", str(aside))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, process_group=0, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return f"one was not made within {TIMEOUT_S:g} s"
    if done.returncode != 0 or not aside.exists():
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return said[-1].removeprefix(_COMPLAINT)[:400] if said else f"the command ended with {done.returncode}"
    aside.replace(path)
    return None
