"""A control group per sandbox, where this process may make one: limits for the memory and the number of all its
processes together. Runs inside the sandbox's helper, from the standard library alone."""

from __future__ import annotations

import contextlib
import os
import time

PREFIX = "rollcall-sandbox-"
_REMOVAL_S = 2.0


class Group:
    """One group; in version 1 a directory in each of two hierarchies."""

    def __init__(self, version: int, folders: list[str]) -> None:
        self.version = version
        self.folders = folders

    def add(self, pid: int) -> None:
        for folder in self.folders:
            _write(folder, "cgroup.procs", pid)

    def remove(self) -> None:
        """Once its processes are gone; their last traces take Linux a moment."""
        for folder in self.folders:
            deadline = time.monotonic() + _REMOVAL_S
            while os.path.exists(folder) and time.monotonic() < deadline:
                try:
                    os.rmdir(folder)
                except OSError:
                    time.sleep(0.005)


def create(*, memory_bytes: int, processes: int) -> Group:
    """Below the groups that this process is in.

    Raises:
      OSError: where that is not possible.
    """
    version, parents = _parents()
    group = Group(version, [f"{parent}/{PREFIX}{os.getpid()}" for parent in parents])
    try:
        for folder in group.folders:
            os.mkdir(folder)
        for folder in group.folders:
            if version == 2:
                _write(folder, "memory.max", memory_bytes)
                with contextlib.suppress(OSError):
                    _write(folder, "memory.swap.max", 0)
            elif os.path.exists(f"{folder}/memory.limit_in_bytes"):
                _write(folder, "memory.limit_in_bytes", memory_bytes)
                with contextlib.suppress(OSError):
                    _write(folder, "memory.memsw.limit_in_bytes", memory_bytes)
            if version == 2 or os.path.exists(f"{folder}/pids.max"):
                _write(folder, "pids.max", processes)
    except OSError:
        group.remove()
        raise
    return group


def available() -> bool:
    """Whether `create` works here: one is made, and removed."""
    try:
        create(memory_bytes=1 << 26, processes=8).remove()
    except OSError:
        return False
    return True


def remove_left_over() -> None:
    """Groups whose helper was killed before it could remove them."""
    with contextlib.suppress(OSError):
        for parent in _parents()[1]:
            for name in os.listdir(parent):
                if name.startswith(PREFIX) and not os.path.exists(f"/proc/{name.removeprefix(PREFIX)}"):
                    with contextlib.suppress(OSError):
                        os.rmdir(f"{parent}/{name}")


def _parents() -> tuple[int, list[str]]:
    """The version, and where groups are made that have a memory and a pids controller."""
    mounts = [line.split() for line in _lines("/proc/self/mounts")]
    own = {names: path for _, names, path in (line.split(":", 2) for line in _lines("/proc/self/cgroup"))}
    found: list[str] = []
    for controller in ("memory", "pids"):
        for _, place, kind, options, *_ in mounts:
            path = next((path for names, path in own.items() if controller in names.split(",")), None)
            if kind == "cgroup" and controller in options.split(",") and path is not None:
                found.append(_below(place, path))
                break
    if len(found) == 2:
        return 1, list(dict.fromkeys(found))
    for _, place, kind, *_ in mounts:
        if kind == "cgroup2" and "" in own:
            parent = _below(place, own[""])
            enabled = " ".join(_lines(f"{parent}/cgroup.subtree_control")).split()
            if not {"memory", "pids"} <= set(enabled):
                _write(parent, "cgroup.subtree_control", "+memory +pids")
            return 2, [parent]
    raise OSError("no cgroup hierarchy with memory and pids is mounted")


def _below(place: str, own: str) -> str:
    """In a container the hierarchy often begins at its own group, whatever the path says."""
    nested = f"{place}/{own.strip('/')}".rstrip("/")
    return nested if os.path.isdir(nested) else place


def _lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


def _write(folder: str, name: str, value: object) -> None:
    with open(f"{folder}/{name}", "w") as file:
        file.write(str(value))
