"""A replay buffer in a checkpoint: pages of its ring, of which only those are written anew that have changed since an
earlier checkpoint of the run; the others are the same files under a second name (hard links). So each checkpoint is
whole by itself, whichever others are removed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np
from safetensors.numpy import load_file, save

from rollcall.cluster.checkpoint import read_state, write_state
from rollcall.cluster.errors import CheckpointDamaged
from rollcall.cluster.files import once_there_is_room
from rollcall.cluster.messages.arrays import Array, digest_of
from rollcall.learners.data.replay import ReplayBuffer

STATE = "replay"  # of a checkpoint's files: what is no page, which names the pages
PAGE_BYTES = 4 << 20


class ReplayPages:
    """Which pages of a buffer changed, and under which names the others lie in checkpoints. A name has its content's
    hash in it: two pages of one name are equal, of whatever timeline."""

    def __init__(self, buffer: ReplayBuffer, *, page_bytes: int = PAGE_BYTES) -> None:
        self._buffer = buffer
        self._page_bytes = page_bytes
        self._names: dict[int, str] = {}  # of pages that lie in a checkpoint as they are now
        self.num_written = 0  # by the last `write`

    @property
    def _rows_per_page(self) -> int:
        rows = self._buffer.num_rows
        return max(1, min(rows, self._page_bytes * rows // max(1, self._buffer.size_bytes)))

    def changed(self, slots: Array) -> None:
        for page in np.unique(slots // (self._rows_per_page * self._buffer.num_envs)).tolist():
            self._names.pop(page, None)

    def write(self, directory: Path, more: Mapping[str, Array]) -> None:
        """Into a checkpoint that is being made beside the others. `more`: of a row or slot each, changing all over."""
        buffer, rows, self.num_written = self._buffer, self._rows_per_page, 0
        newest = min(int(buffer.streams[0].max()), buffer.num_rows - 1)
        for page in range(newest // rows + 1 if newest >= 0 else 0):
            known = self._names.get(page)
            if known is not None and _linked(known, directory):
                continue
            own = slice(page * rows, (page + 1) * rows)
            arrays = {name: array[own] for name, array in buffer.arrays.items()}
            name = f"{STATE}-{page:06d}-{digest_of(iter(arrays.items()))}.safetensors"
            _write(directory / name, arrays)
            self._names[page] = name
            self.num_written += 1
        pages = [self._names[page] for page in sorted(self._names)]
        meta = {"pages": pages, "rows_per_page": rows, "num_rows": buffer.num_rows}
        write_state(directory, STATE, {"streams": buffer.streams, **more}, meta)

    def read(self, checkpoint: Path) -> dict[str, Array]:
        """Fills the buffer. Returns `more`.

        Raises:
          CheckpointDamaged: when it is of a buffer of another size.
        """
        state = read_state(checkpoint, STATE)
        if state is None:
            raise CheckpointDamaged(f"{checkpoint}: has no replay buffer")
        arrays, meta = state
        buffer, streams = self._buffer, arrays.pop("streams")
        if streams.shape != buffer.streams.shape or meta["num_rows"] != buffer.num_rows:
            raise CheckpointDamaged(
                f"{checkpoint}: its replay buffer is of {streams.shape[1]} envs with {meta['num_rows']} rows each, and "
                f"the run's of {buffer.num_envs} with {buffer.num_rows}"
            )
        self._names.clear()
        for page, name in enumerate(cast(list[str], meta["pages"])):
            found: dict[str, Array] = load_file(checkpoint / name)
            buffer.adopt(found)
            for key, array in found.items():
                buffer.arrays[key][page * meta["rows_per_page"] :][: len(array)] = array
            self._names[page] = name
        buffer.restore(streams)
        return arrays


def _linked(name: str, directory: Path) -> bool:
    """Whether an earlier checkpoint of the run had the file, and now `directory` has it too."""
    for checkpoint in sorted(directory.parent.glob("step-*"), reverse=True):
        with suppress(OSError):  # it never had it; or it is pruned just now; or this file system has no links
            os.link(checkpoint / name, directory / name)
            return True
    return False


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    once_there_is_room(lambda: path.write_bytes(content), path.parent, undo=lambda: path.unlink(missing_ok=True))
