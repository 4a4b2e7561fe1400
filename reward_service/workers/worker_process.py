"""The other side of pool.py: one process that loads one function and then calls it for each job. Standard output and
input belong to the protocol alone: what a job prints goes to standard error, which the pool keeps or drops."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.import_path import import_object
from rollcall.cluster.inputs.user_code import described, one_line

_PR_SET_PDEATHSIG = 1
MAX_FRAME_BYTES = 1 << 28


def main() -> None:
    """argv: the parent's pid, and where the function is made."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return
    requests, replies = _take_standard_streams()
    start = json.loads(_receive(requests))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (start["memory_bytes"], start["memory_bytes"]))
    own = os.getpid()
    try:
        function = import_object(sys.argv[2])(start["settings"])
    except BaseException as error:
        _send(replies, {"refused": str(error) if isinstance(error, BadInput) else one_line(error)})
        return
    _send(replies, {"ready": True})
    while True:
        try:
            job = json.loads(_receive(requests))
        except EOFError:
            return
        reply: dict[str, Any]
        try:
            reply = {"result": function(job)}
        except MemoryError:
            reply = {"error": "it ran out of memory", "spent": True}
        except BaseException as error:  # sys.exit() in a user's function, too
            reply = {"error": _told(error) if start["trusted"] else one_line(error)}
        if os.getpid() != own:  # the job has forked, and this is the child
            os._exit(0)
        try:
            raw = json.dumps(reply).encode()
        except (TypeError, ValueError) as error:
            raw = json.dumps({"error": f"its result cannot be written as JSON: {error}"}).encode()
        _write(replies, raw)
        if reply.get("spent"):
            return


def _take_standard_streams() -> tuple[int, int]:
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return requests, replies


def _told(error: BaseException) -> str:
    """Also to whoever reads what the function prints, beside it and in order."""
    text = described(error)
    with contextlib.suppress(Exception):
        print(text.partition("\n")[2], file=sys.stderr, flush=True)
    return text


def _receive(descriptor: int) -> bytes:
    (length,) = struct.unpack("<I", _read(descriptor, 4))
    return _read(descriptor, length)


def _read(descriptor: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(descriptor, min(length, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _send(descriptor: int, message: dict[str, Any]) -> None:
    _write(descriptor, json.dumps(message).encode())


def _write(descriptor: int, raw: bytes) -> None:
    raw = struct.pack("<I", len(raw)) + raw
    while raw:
        raw = raw[os.write(descriptor, raw) :]


if __name__ == "__main__":
    main()
