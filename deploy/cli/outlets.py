"""Where a run prints to may go away: a pipe that nobody reads any more, a closed terminal, a file on a full disk. What
is printed is a courtesy, and the run goes on without it: all of it is in the run directory too."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_GONE = {errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EBADF, errno.ENXIO}


class Outlet:
    """A stream that takes everything, also once nobody takes it."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._unsaid = ""  # why it is closed, until somebody keeps what is logged

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._say()
        try:
            return self._stream.write(text)
        except OSError as error:
            self._close(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._close(error)

    def _close(self, error: OSError) -> None:
        """Whatever else goes there, also what the stream still holds, is to vanish without a word."""
        if error.errno not in _GONE:
            raise error
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._unsaid = f"{self._name} is closed ({error.strerror}): the run goes on"
        self._say()

    def _say(self) -> None:
        log = logging.getLogger("rollcall")
        if self._unsaid and log.hasHandlers():
            log.info(self._unsaid)
            self._unsaid = ""


@contextlib.contextmanager
def printing_may_end() -> Iterator[None]:
    """Until its end a print never fails."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Outlet(before[0], "standard output"), Outlet(before[1], "standard error")
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
