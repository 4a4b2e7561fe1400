"""A control group per sandbox, where this process may make one: limits for the memory and the number of all its
processes together. Runs inside the sandbox's helper, from the standard library alone; must never know what runs in
the group."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "rollcall-sandbox-"
_MOUNTS = Path("/proc/self/mounts")
_MEMBERSHIP = Path("/proc/self/cgroup")
_REMOVAL_S = 2.0


@dataclass(frozen=True, slots=True)
class Group:
    """One group; in version 1 a directory in each of two hierarchies."""

    version: int
    folders: tuple[Path, ...]

    def add(self, pid: int) -> None:
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Once its processes are gone; their last traces take the kernel a moment."""
        for folder in self.folders:
            deadline = time.monotonic() + _REMOVAL_S
            while folder.exists() and time.monotonic() < deadline:
                try:
                    folder.rmdir()
                except OSError:
                    time.sleep(0.005)


def create(*, memory_bytes: int, processes: int) -> Group:
    """Below the groups that this process is in.

    Raises:
      OSError: where that is not possible.
    """
    name = f"{PREFIX}{os.getpid()}"
    version, parents = _parents()
    group = Group(version, tuple(parent / name for parent in parents))
    try:
        for folder in group.folders:
            folder.mkdir()
        for folder in group.folders:
            if version == 2 or (folder / "memory.limit_in_bytes").exists():
                _limit_memory(folder, version, memory_bytes)
            if (folder / "pids.max").exists():
                (folder / "pids.max").write_text(str(processes))
            elif version == 2:
                raise OSError("the group has no pids controller")
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
            for folder in parent.glob(f"{PREFIX}*"):
                if not Path(f"/proc/{folder.name.removeprefix(PREFIX)}").exists():
                    with contextlib.suppress(OSError):
                        folder.rmdir()


def _limit_memory(folder: Path, version: int, memory_bytes: int) -> None:
    if version == 2:
        (folder / "memory.max").write_text(str(memory_bytes))
        with contextlib.suppress(OSError):
            (folder / "memory.swap.max").write_text("0")
        return
    (folder / "memory.limit_in_bytes").write_text(str(memory_bytes))
    with contextlib.suppress(OSError):
        (folder / "memory.memsw.limit_in_bytes").write_text(str(memory_bytes))


def _parents() -> tuple[int, tuple[Path, ...]]:
    """The version, and where groups are made that have a memory and a pids controller."""
    mounts = list(_mounts())
    membership = [line.split(":", 2) for line in _MEMBERSHIP.read_text().splitlines()]
    own = {controller: path for _, names, path in membership for controller in names.split(",")}
    found: list[Path] = []
    for controller in ("memory", "pids"):
        for place, kind, options in mounts:
            if kind == "cgroup" and controller in options and controller in own:
                found.append(_below(place, own[controller]))
                break
    if len(found) == 2:
        return 1, tuple(dict.fromkeys(found))
    for place, kind, _ in mounts:
        if kind == "cgroup2" and "" in own:
            parent = _below(place, own[""])
            if not {"memory", "pids"} <= set((parent / "cgroup.subtree_control").read_text().split()):
                (parent / "cgroup.subtree_control").write_text("+memory +pids")
            return 2, (parent,)
    raise OSError("no cgroup hierarchy with memory and pids is mounted")


def _below(place: Path, own: str) -> Path:
    """In a container the hierarchy often begins at its own group, whatever the path says."""
    nested = place / own.lstrip("/")
    return nested if nested.is_dir() else place


def _mounts() -> Iterator[tuple[Path, str, list[str]]]:
    for line in _MOUNTS.read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        yield Path(place), kind, options.split(",")
