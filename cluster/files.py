"""Files that appear whole or not at all: written aside, then renamed into place; and read, whole or not at all. What
the books need waits for room where a disk is full, and for a disk that fails."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

ROOM_PATIENCE_S = 300.0  # for room on a full disk: less than a run may stand still by default
LOOK_S = 0.5

no_more_waiting = threading.Event()  # set where the run is to stop: nobody waits for room any longer

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_FAILS = {errno.EIO}  # a server of files that is away, a cable: what was to be written is written anew, whole
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def write_aside(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Replaces `path` in one move, once the bytes are on the disk. `private`: readable by this user alone."""
    aside = path.with_name(path.name + ".new")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666), "wb") as file:
        if private:
            os.fchmod(file.fileno(), 0o600)  # it may be of a process that was killed
        try:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # a part of it is of no use, and takes room
                os.ftruncate(file.fileno(), 0)
            raise
    aside.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when it is not there or not whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def append_whole(file: int, content: bytes) -> None:
    """All of it, or, where the disk refuses a part, nothing of it. `file`: a descriptor that appends."""
    size = os.fstat(file).st_size
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, size)
        raise


def refused_by_disk(error: BaseException) -> bool:
    """Whether a disk, or a user's share of it, is full, or the disk fails: that may pass."""
    return _number(error) in _NO_ROOM | _FAILS


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))  # safetensors', written in Rust
    return int(found[1]) if found is not None else None


def once_there_is_room(
    write: Callable[[], _T], where: Path, *, undo: Callable[[], None] = lambda: None, patience_s: float | None = None
) -> _T:
    """What `write` returns, which is called again for as long as the disk of `where` is full, or fails. `undo` takes
    back what is of no use of a try, so that others have the room.

    Raises:
      OSError: when `patience_s` (ROOM_PATIENCE_S) are over, or nobody is to wait any more.
    """
    patience_s = ROOM_PATIENCE_S if patience_s is None else patience_s
    deadline = 0.0
    while True:
        try:
            result = write()
        except Exception as error:
            if not refused_by_disk(error):
                raise
            undo()
            if not deadline:
                deadline = time.monotonic() + patience_s
                what = "disk full: waiting for room in" if _number(error) in _NO_ROOM else "disk fails: trying again in"
                _log.warning("%s %s, for %g s", what, where, patience_s)
            if no_more_waiting.wait(LOOK_S) or time.monotonic() > deadline:
                raise
            continue
        if deadline:
            _log.warning("the disk takes what is written again in %s: the run goes on", where)
        return result
