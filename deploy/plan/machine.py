"""What a machine has: memory, as far as this process may use it, shared memory, disk, and GPUs. Of a container the
limit counts, and not what the host has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rollcall.cluster.cores import usable_cores
from rollcall.deploy.plan.needs import MIB

THIS_MACHINE = "this machine"  # its name, where it is no node of a cluster
SHARED_MEMORY = Path("/dev/shm")
CGROUPS = Path("/sys/fs/cgroup")
ANSWER_TIMEOUT_S = 20.0  # of nvidia-smi: a driver that sleeps takes seconds to wake up


@dataclass(frozen=True)
class Machine:
    """One machine, or one node of a cluster."""

    name: str
    memory_bytes: int  # all that we may ever have
    free_bytes: int  # of it, now
    shared_bytes: int  # free in /dev/shm; 0: not known
    disk_bytes: int  # free where runs are kept; 0: not known
    gpu_bytes: tuple[int, ...] = ()  # of each GPU
    num_cpus: float = 1.0
    num_gpus: float = 0.0  # as Ray counts them
    resources: Mapping[str, float] = field(default_factory=dict)  # as Ray counts them
    labels: Mapping[str, str] = field(default_factory=dict)


def this_machine(runs: Path) -> Machine:
    """`runs`: the directory of run directories, which need not be there yet."""
    memory, limit = psutil.virtual_memory(), memory_limit()
    used = memory_used()
    total = min(memory.total, limit or memory.total)
    free = memory.available if limit is None or used is None else min(memory.available, limit - used)
    gpus = gpu_memory()
    return Machine(
        name=THIS_MACHINE,
        memory_bytes=total,
        free_bytes=max(0, free),
        shared_bytes=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0,
        disk_bytes=_free_on(runs),
        gpu_bytes=gpus,
        num_cpus=float(usable_cores()),
        num_gpus=float(len(gpus)),
    )


def memory_limit(groups: Path = CGROUPS) -> int | None:
    """Of this container, in bytes; None: there is none. The tighter one of all groups that we are in."""
    found = [_number(path) for path in _files(groups, "memory.max", "memory.limit_in_bytes")]
    limits = [limit for limit in found if limit is not None and limit < psutil.virtual_memory().total]
    return min(limits, default=None)


def memory_used(groups: Path = CGROUPS) -> int | None:
    """By this container: without what it has read of files, which goes when room is wanted."""
    for path in _files(groups, "memory.current", "memory.usage_in_bytes"):
        used = _number(path)
        if used is None:
            continue
        try:
            lines = (path.parent / "memory.stat").read_text().splitlines()
            stat = {name: int(value) for name, value in (line.split() for line in lines)}
        except (OSError, ValueError):
            stat = {}
        return used - stat.get("inactive_file", stat.get("total_inactive_file", 0))
    return None


def oom_kills(groups: Path = CGROUPS, counters: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has ended for want of memory: here, or in this container."""
    found = 0
    for path in [*_files(groups, "memory.events", "memory.oom_control"), counters]:
        try:
            lines = [line.split() for line in path.read_text().splitlines()]
        except OSError:
            continue
        found = max([found, *(int(line[1]) for line in lines if line[0] == "oom_kill" and line[1].isdigit())])
    return found


def gpu_memory() -> tuple[int, ...]:
    """Of each GPU that this process may use. Asked of the driver's own program: torch would take a part of each GPU's
    memory for as long as this process lives."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible_gpus(answer, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(answer: str, visible: str | None) -> tuple[int, ...]:
    """Of nvidia-smi's answer those that CUDA_VISIBLE_DEVICES names, by number or by (the beginning of) their UUID."""
    found: list[tuple[str, str, int]] = []
    for line in answer.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3 and cells[2].isdigit():
            found.append((cells[0], cells[1], int(cells[2]) * MIB))
    if visible is None:
        return tuple(size for _, _, size in found)
    chosen = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        match = [size for index, uuid, size in found if name == index or (len(name) > 4 and uuid.startswith(name))]
        if not match:  # CUDA looks no further
            break
        chosen.append(match[0])
    return tuple(chosen)


def _files(groups: Path, second: str, first: str) -> list[Path]:
    """Of this process's control groups, version 2 or 1: its own one's, those above it, and the root's, which in a
    container is its own."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        own = Path(path.lstrip("/"))
        for place in (own, *own.parents):
            if controllers == "":
                found.append(groups / place / second)
            elif "memory" in controllers.split(","):
                found.append(groups / "memory" / place / first)
    found += [groups / second, groups / "memory" / first]
    return list(dict.fromkeys(path for path in found if path.is_file()))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _free_on(directory: Path) -> int:
    there = next((path for path in (directory.absolute(), *directory.absolute().parents) if path.exists()), None)
    return shutil.disk_usage(there).free if there is not None else 0
