"""Arrays that lie in files and not in memory: the system brings what is touched, and writes back what it needs the room
of. They are a process's own, and gone with it: what is to last, a checkpoint has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.data.replay import Allocate


def mapped_in(directory: Path) -> Allocate:
    """A file for each array, in a directory that is emptied first. Files are as large as what was written to them."""
    shutil.rmtree(directory, ignore_errors=True)

    def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        directory.mkdir(parents=True, exist_ok=True)
        return np.memmap(directory / f"{name}.ring", dtype, "w+", shape=shape)

    return allocate
