"""Arrays that lie in files and not in memory: the system brings what is touched, and writes back what it needs the room
of. The files have no names, and are gone with the process, however it ends: what is to last, a checkpoint has."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.data.replay import Allocate


def mapped_in(directory: Path) -> Allocate:
    """A file for each array, on the disk of a directory; as large as what was written to it."""

    def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            return np.memmap(file, dtype, "w+", shape=shape)

    return allocate
