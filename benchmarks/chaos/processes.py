"""The processes of a run: which is of what kind, how they are stopped, and who is left when a run is over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

# A kind of process, and what its command line has in it.
TITLES = {
    "actor": ("GymActorProcess", "LMActorProcess"),
    "learner": ("LearnerProcess",),
    "parameter_server": ("ParameterServerProcess",),
    "evaluator": ("EvalProcess",),
    "scoring": ("ScoringProcess",),
    "preference_trainer": ("PreferenceTrainerProcess",),
    "reward_service": ("rollcall.reward_service.service.private",),
    "redis": ("valkey-server", "redis-server"),
    "gcs": ("/gcs_server",),
    "raylet": ("/raylet/raylet",),
}
LEFTOVER_S = 20.0


def members(driver: psutil.Process) -> dict[str, list[psutil.Process]]:
    """The processes below a driver, by kind, and itself."""
    found: dict[str, list[psutil.Process]] = {"driver": [driver]} if lives(driver) else {}
    for child in children(driver):
        with suppress(psutil.Error):
            line = " ".join(child.cmdline())
            for kind, titles in TITLES.items():
                if any(title in line for title in titles) and child.status() != psutil.STATUS_ZOMBIE:
                    found.setdefault(kind, []).append(child)
                    break
    return found


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def send(process: psutil.Process, number: int) -> bool:
    """Whether it was there to hear it."""
    try:
        process.send_signal(number)
        return True
    except psutil.Error:
        return False


def stop_for(process: psutil.Process, seconds: float) -> None:
    """Stopped, and continued unless it was ended meanwhile."""
    send(process, signal.SIGSTOP)
    time.sleep(seconds)
    send(process, signal.SIGCONT)


def end_all(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        send(process, signal.SIGKILL)


def still_there(known: Iterable[psutil.Process], mark: tuple[str, str], *, within_s: float = LEFTOVER_S) -> list[str]:
    """Who of these, or of all that have `mark` (name, value) in their environment, is there after so long."""
    known, deadline = set(known), time.monotonic() + within_s
    while True:
        left = [process for process in known | _marked(mark) if lives(process)]
        if not left or time.monotonic() > deadline:
            return [_named(process) for process in left]
        time.sleep(0.2)


def _marked(mark: tuple[str, str]) -> set[psutil.Process]:
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(mark[0]) == mark[1]:
                found.add(process)
    return found


def _named(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:120]}"
    except psutil.Error:
        return str(process.pid)


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("*")} if Path("/dev/shm").is_dir() else set()


def nobodys(names: Iterable[str]) -> list[str]:
    """Of these files of shared memory, those that no process has open or mapped."""
    left = {name for name in names if (Path("/dev/shm") / name).exists()}
    if not left:
        return []
    used = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            opened = {os.path.basename(os.readlink(link)) for link in Path(f"/proc/{process.pid}/fd").iterdir()}
            maps = Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
            used |= {name for name in left if name in opened or f"/dev/shm/{name}" in maps}
    return sorted(left - used)
