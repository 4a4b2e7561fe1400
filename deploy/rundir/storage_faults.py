"""A disk that is full or refuses to be written, a temporary directory that cannot be used: one line of it, and no pages
around that line."""

from __future__ import annotations

import errno
import logging
import re
import tempfile
import threading

_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}


def storage_fault(cause: BaseException) -> str:
    """What a disk refused, if that is what happened: starting anything again would not help."""
    if isinstance(cause, OSError) and cause.errno in _STORAGE:
        return f"{cause.filename or 'the run directory'}: {cause.strerror}"
    found = re.search(r"\(os error (\d+)\)", str(cause))  # safetensors', written in Rust
    if found and int(found[1]) in _STORAGE:
        return f"the run directory: {' '.join(str(cause).split())[:200]}"
    return ""


def say_it_once() -> None:
    """The log and the threads of this process meet the same full disk as whoever ends over it: they keep silent."""
    logging.raiseExceptions = False

    def failed(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or not storage_fault(args.exc_value):
            threading.__excepthook__(args)

    threading.excepthook = failed


def socket_path_fault(error: BaseException) -> str:
    """What to do where an error is of a temporary directory whose path leaves no room for the names of sockets, which
    have 107 bytes in all; empty for other errors."""
    if "AF_UNIX path" not in str(error):
        return ""
    return f"TMPDIR={tempfile.gettempdir()} is too long a path for the sockets of processes: set TMPDIR=/tmp"
