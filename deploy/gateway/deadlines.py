"""A socket read against a deadline for a whole request, so that nobody holds a thread by sending a byte now and
then."""

from __future__ import annotations

import io
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

IDLE_S = 90.0  # between two requests of one connection: more than a long poll
REQUEST_S = 10.0  # from a request's first byte to the end of its headers
BODY_BYTES_PER_S = 64 << 10  # the slowest that a body may come


class DeadlineReader(io.RawIOBase):
    """What comes from a socket; TimeoutError once the deadline has passed, however much comes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._between = True
        self._deadline = time.monotonic() + REQUEST_S  # the first request of a connection has to come at once

    def next_request(self) -> None:
        """The one before was answered."""
        self._between = True
        self._deadline = time.monotonic() + IDLE_S

    def body(self, size_bytes: int) -> None:
        """So much is to be read now."""
        self._deadline = time.monotonic() + REQUEST_S + size_bytes / BODY_BYTES_PER_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the request did not come in time")
        self._connection.settimeout(remaining)
        count = self._connection.recv_into(buffer)
        if self._between and count:
            self._between = False
            self._deadline = time.monotonic() + REQUEST_S
        return count
