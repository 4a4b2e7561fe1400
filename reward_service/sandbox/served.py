"""A role that answers requests for as long as its sandbox stands, in place of one process after another: what is asked
goes over a socket, as frames of JSON, each with a deadline. What comes back was made by code that nobody trusts."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rollcall.reward_service.sandbox.containment import Containment
from rollcall.reward_service.sandbox.helper_process import Pipes, SandboxBroken
from rollcall.reward_service.sandbox.limits import Limits
from rollcall.reward_service.sandbox.solution_channel import MAX_FRAME_BYTES

_PART_BYTES = 1 << 20


class Ended(Exception):
    """The process that answers has ended, or was ended at a limit; the message says how."""


class Served:
    """One sandbox and its end of the socket. Used by one thread, which outlives it."""

    def __init__(self, containment: Containment, limits: Limits, role: str, arguments: Mapping[str, object]) -> None:
        """Raises SandboxBroken: nothing is known about the code."""
        with Pipes.opened() as pipes:
            ours, theirs = pipes.socket_pair()
            self._helper = containment.helper(limits, role, arguments, [{"channel": theirs}])
            try:
                self._helper.await_ready()
                self._helper.begin()
                self._socket = socket.socket(fileno=socket.dup(ours))
            except BaseException:
                self._helper.close()
                raise

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer. After an exception nothing more can be asked.

        Raises:
          ValueError: the request is too large; nothing is sent of it.
          TimeoutError: it did not come in time.
          Ended: the process is gone, or what it says is no frame of JSON.
        """
        deadline = time.monotonic() + timeout_s
        raw = json.dumps(request).encode()
        if len(raw) > MAX_FRAME_BYTES:
            raise ValueError(f"a request of {len(raw)} bytes: {MAX_FRAME_BYTES} at the most: ask for less at a time")
        try:
            self._wait_until(deadline)
            self._socket.sendall(struct.pack("<I", len(raw)) + raw)
            (length,) = struct.unpack("<I", self._read(4, deadline))
            if length > MAX_FRAME_BYTES:
                raise Ended(f"it answered with {length} bytes, and {MAX_FRAME_BYTES} are read")
            answer = json.loads(self._read(length, deadline))
        except TimeoutError:
            raise
        except OSError:
            raise Ended(self._how_it_ended()) from None
        except (ValueError, RecursionError):
            raise Ended("what it answered is no JSON") from None
        if not isinstance(answer, dict):
            raise Ended("what it answered is no JSON object")
        return answer

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()
        self._helper.close()

    def _read(self, length: int, deadline: float) -> bytes:
        parts = []
        while length:
            self._wait_until(deadline)
            part = self._socket.recv(min(length, _PART_BYTES))
            if not part:
                raise ConnectionResetError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _wait_until(self, deadline: float) -> None:
        rest_s = deadline - time.monotonic()
        if rest_s <= 0:
            raise TimeoutError
        self._socket.settimeout(rest_s)

    def _how_it_ended(self) -> str:
        try:
            found = self._helper.end()
        except SandboxBroken as error:
            return str(error)
        if found["exit"] == -9:
            return "its process was ended at a limit: of memory, most likely"
        if found["exit"] == -24:  # SIGXCPU
            return "its process was ended at its limit of processor time"
        return f"its process ended with status {found['exit']}"
