"""Calls between tests and the code they test, which run in two sandboxes: frames of JSON over a socket, and what can be
asked. Runs inside both, from the standard library alone. The verdict is made at the tests' end, from plain values of
its own making: nothing that the code does to its own interpreter reaches it."""

from __future__ import annotations

import copy
import json
import operator
import os
import struct
from collections.abc import Callable
from typing import Any

MAX_FRAME_BYTES = 1 << 25


class OtherEndGone(BaseException):
    """The process at the other end has ended. No Exception: tests that expect any error must not take it for one."""


class Channel:
    """Asks the other end, and meanwhile answers what it asks."""

    def __init__(self, descriptor: int, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._descriptor = descriptor
        self._answer = answer
        self.gone = False  # the other end, before we were done with it

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.send(message)
        while True:
            received = self.receive()
            if "do" not in received:
                return received
            self.send(self._answer(received))

    def serve(self) -> None:
        """Answers until the other end is gone."""
        while True:
            self.send(self._answer(self.receive()))

    def send(self, message: dict[str, Any]) -> None:
        raw = json.dumps(message).encode()
        if len(raw) > MAX_FRAME_BYTES:
            raise self._left()
        raw = struct.pack("<I", len(raw)) + raw
        try:
            while raw:
                raw = raw[os.write(self._descriptor, raw) :]
        except OSError:
            raise self._left() from None

    def receive(self) -> dict[str, Any]:
        (length,) = struct.unpack("<I", self._read(4))
        if length > MAX_FRAME_BYTES:
            raise self._left()
        try:
            message = json.loads(self._read(length))
        except (ValueError, RecursionError):
            raise self._left() from None
        if not isinstance(message, dict):
            raise self._left()
        return message

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            try:
                part = os.read(self._descriptor, min(length, 1 << 16))
            except OSError:
                part = b""
            if not part:
                raise self._left()
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _left(self) -> OtherEndGone:
        self.gone = True
        return OtherEndGone()


COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
UNARY = ("neg", "pos", "invert", "index")
OPERATIONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in (*COMPARISONS, *BINARY, *UNARY, "getitem", "setitem", "delitem", "contains")
} | {
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "len": len,
    "iter": iter,
    "reversed": reversed,
    "next": next,
    "send": lambda generator, value: generator.send(value),
    "hash": hash,
    "bool": bool,
    "int": int,
    "float": float,
    "complex": complex,
    "str": str,
    "repr": repr,
    "format": format,
    "abs": abs,
    "round": round,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager: type(manager).__exit__(manager, None, None, None),
}
