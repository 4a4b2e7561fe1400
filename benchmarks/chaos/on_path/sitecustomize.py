"""Loaded by every Python process of a run under chaos. At named places of the product ("seams") a process looks
whether its seam is armed, and if so kills or stops itself there. Without $ROLLCALL_CHAOS nothing is done. Must import
nothing of the product: a module is changed when somebody else imports it."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

FOLDER = "ROLLCALL_CHAOS"  # of what is armed and what has fired
SLOW_DISK = "slow-disk"
FSYNC_S = 0.25  # on a slow disk

# module -> (class, method, what its seam is called)
SEAMS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "rollcall.actors.control.gym_actor": (("GymActor", "produce", "produce"),),
    "rollcall.actors.language.lm_actor": (("LMActor", "_produced", "produce"),),
    "rollcall.actors.trajectory_scoring": (("TrajectoryScorer", "score", "score"),),
    "rollcall.learners.loop.learner": (("Learner", "_optimise", "optimise"), ("Learner", "save", "save")),
    "rollcall.cluster.parameter_server": (("ParameterServer", "publish", "publish"),),
    "rollcall.cluster.books.consumption": (("ConsumptionLog", "append", "log"), ("ConsumptionLog", "_fold", "fold")),
    "rollcall.cluster.books.ledger": (
        ("Ledger", "issue", "issue"),
        ("Ledger", "commit", "commit"),
        ("Ledger", "restore", "restore"),
        ("Ledger", "_trim", "trim"),
    ),
    "rollcall.cluster.books.sealed": (("SealedBooks", "append", "seal"), ("SealedBooks", "_book", "index")),
    "rollcall.cluster.checkpoint": (("CheckpointWriter", "finish", "checkpoint"),),
}

# Small runs seal and fold often: defaults of these, while there is chaos.
SMALL_BOOKS: dict[str, tuple[str, str, int]] = {
    "rollcall.cluster.books.sealed": ("SealedBooks", "least", 64),
    "rollcall.cluster.books.consumption": ("ConsumptionLog", "rotate_bytes", 30_000),
}


def reached(seam: str, folder: str) -> None:
    """Whoever comes first to an armed seam takes it."""
    armed = os.path.join(folder, seam)
    try:
        with open(armed, encoding="ascii") as file:
            number = int(file.read())
        os.rename(armed, f"{armed}.fired.{os.getpid()}")
    except (FileNotFoundError, ValueError):
        return
    os.kill(os.getpid(), number)


def watched(method: Callable[..., Any], seam: str, folder: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def between(*args: Any, **kwargs: Any) -> Any:
        reached(f"{seam}.before", folder)
        result = method(*args, **kwargs)
        reached(f"{seam}.after", folder)
        return result

    return between


def change(module: ModuleType, folder: str) -> None:
    small = SMALL_BOOKS.get(module.__name__)
    if small is not None:
        getattr(module, small[0]).__init__.__kwdefaults__[small[1]] = small[2]
    for class_name, method, seam in SEAMS[module.__name__]:
        of = getattr(module, class_name)
        setattr(of, method, watched(getattr(of, method), seam, folder))


class Finder(importlib.abc.MetaPathFinder):
    """Finds nothing by itself: has the modules that it knows changed once they are executed."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in SEAMS:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def exec_module(module: ModuleType, execute: Callable[[ModuleType], None] = execute) -> None:
                    execute(module)
                    change(module, self._folder)

                spec.loader.exec_module = exec_module  # type: ignore[method-assign]
                return spec
        return None


def install(folder: str) -> None:
    sys.meta_path.insert(0, Finder(folder))
    rename, replace, fsync = pathlib.Path.rename, pathlib.Path.replace, os.fsync

    def renamed(self: pathlib.Path, target: Any) -> pathlib.Path:
        seam = "rename" if self.name.startswith(".making-") else ""
        if seam:
            reached("rename.before", folder)
        moved = rename(self, target)
        if seam:
            reached("rename.after", folder)
        return moved

    def replaced(self: pathlib.Path, target: Any) -> pathlib.Path:
        reached("replace.before", folder)
        moved = replace(self, target)
        reached("replace.after", folder)
        return moved

    def slow(descriptor: Any) -> None:
        if os.path.exists(os.path.join(folder, SLOW_DISK)):
            time.sleep(FSYNC_S)
        fsync(descriptor)

    changed: tuple[tuple[Any, str, Any], ...] = (
        (pathlib.Path, "rename", renamed),
        (pathlib.Path, "replace", replaced),
        (os, "fsync", slow),
    )
    for of, name, instead in changed:
        setattr(of, name, instead)


if os.environ.get(FOLDER) and hasattr(signal, "SIGKILL"):
    install(os.environ[FOLDER])
