"""A log of lines as a file that several may append to, one after the other, and whose writer may be killed in the
middle of a line. Must never know what the lines say."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

_TAIL_BYTES = 1 << 16  # enough to find the last line in


@contextmanager
def alone(path: Path) -> Iterator[FileIO]:
    """The log, to append to, with nobody beside us."""
    with path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def last_line(path: Path) -> str:
    """The last line that has an end; empty without one."""
    if not path.exists():
        return ""
    *whole, _ = _tail(path).split(b"\n")
    return whole[-1].decode(errors="replace") if whole else ""


def cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    tail = _tail(path)
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if torn:
        os.truncate(path, path.stat().st_size - torn)


def _tail(path: Path) -> bytes:
    size = _TAIL_BYTES
    while True:
        with path.open("rb") as file:
            whole = path.stat().st_size
            file.seek(max(0, whole - size))
            tail = file.read()
        if size >= whole or tail.count(b"\n") > 1:
            return tail
        size *= 16  # a line longer than that
