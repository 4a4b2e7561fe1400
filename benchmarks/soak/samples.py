"""What a run holds at one moment: the memory, open files and threads of its processes by role, the bytes of its
directory by what they are for, its Redis. Looks from outside, at /proc, the disk and Redis; never asks the run."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rollcall.cluster.store.store import Store

# In this order: the first that is found in a command line.
ROLES = (
    (r"ray::LearnerProcess", "learner"),
    (r"ray::(LM|Gym)ActorProcess", "actors"),
    (r"ray::EvalProcess", "evaluator"),
    (r"ray::ParameterServerProcess", "parameter server"),
    (r"ray::ScoringProcess", "scoring"),
    (r"ray::", "other actors of Ray"),
    (r"VLLM::|EngineCore", "engine"),
    (r"gcs_server", "GCS"),
    (r"raylet", "raylet"),
    (r"absent_agent|guardian|site-packages/ray/", "the rest of Ray"),
    (r"(redis|valkey)-server", "Redis"),
    (r"reward_service", "reward service"),
)
DRIVER, OTHERS = "driver", "others"
GRPCS = ("event_engine", "default-executo")  # threads of its pools, which grow when many calls wait and shrink again

# Of a run directory, by the path within it; the first that fits.
PARTS = (
    (r"books/", "sealed books"),
    (r"logs/consumption", "consumption log"),
    (r"logs/", "logs"),
    (r"redis/", "Redis' files"),
    (r"checkpoints/", "checkpoints"),
    (r"[^/]*\.jsonl$|tensorboard/", "lines per step"),
)


@dataclass(frozen=True)
class Sample:
    """`values`: "kind: of what" -> how much; what is not there is 0."""

    at_s: float
    tickets: int
    values: Mapping[str, float]


def look(at_s: float, driver: psutil.Process, directory: Path, store: Store) -> Sample:
    """One sample of a run that is alive."""
    values: Counter[str] = Counter()
    for process in (driver, *driver.children(recursive=True)):
        with suppress(psutil.Error, OSError, KeyError):  # it has just ended
            values.update(process_values(process.pid, DRIVER if process == driver else role_of(process)))
    values.update({f"disk: {part}": size for part, size in directory_bytes(directory).items()})
    said: Mapping[str, str] = store.client.hgetall(store.key("ledger", "counters"))  # type: ignore[assignment]
    memory: Mapping[str, int] = store.client.info("memory")
    values["data: Redis"] = int(memory["used_memory"])
    return Sample(at_s, int(said.get("committed", 0)), dict(values))


def role_of(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    return next((role for pattern, role in ROLES if re.search(pattern, line)), OTHERS)


def process_values(pid: int, role: str) -> dict[str, float]:
    """Pages of files are left out: whether another process of the machine shares them is not the run's doing. What
    processes share of the object store counts once, for all of them together. Threads: without gRPC's pools."""
    place = Path(f"/proc/{pid}")
    pages = {
        name: 1024 * int(size)
        for name, size in re.findall(r"^(\w+):\s+(\d+) kB", (place / "smaps_rollup").read_text(), re.MULTILINE)
    }
    files = sum(1 for _ in os.scandir(place / "fd"))
    return {
        f"memory: {role}": pages["Pss_Anon"] + pages["SwapPss"],
        "shared memory: all": pages["Pss_Shmem"],
        f"open files: {role}": files,
        f"threads: {role}": sum(name not in GRPCS for name in _thread_names(place)),
    }


def _thread_names(place: Path) -> Iterator[str]:
    for thread in os.scandir(place / "task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            yield (Path(thread) / "comm").read_text().strip()


def directory_bytes(directory: Path) -> Counter[str]:
    """By what the files are for."""
    sizes: Counter[str] = Counter()
    for name, size in _files(directory, directory):
        sizes[next((part for pattern, part in PARTS if re.match(pattern, name)), OTHERS)] += size
    return sizes


def _files(folder: Path, root: Path) -> Iterator[tuple[str, int]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:  # an old checkpoint has just been removed
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), root)
            else:
                with suppress(FileNotFoundError):
                    size = entry.stat(follow_symlinks=False).st_size
                    yield os.path.relpath(entry.path, root), size
