"""Calls between tests and the code they test, which run in two sandboxes: frames of JSON over a socket, and the two
ends' answers. Runs inside both, from the standard library alone. The verdict is made at the tests' end, from plain
values of its own making: nothing that the code does to its own interpreter reaches it."""

from __future__ import annotations

import builtins
import json
import operator
import os
import struct
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rollcall.reward_service.sandbox import plain_values
from rollcall.reward_service.sandbox.plain_values import CannotCross, Decode, Encode, decode, encode

MAX_FRAME_BYTES = 1 << 25
_CHANGEABLE = ("list", "dict", "set", "bytearray", "deque", "OrderedDict", "Counter", "defaultdict")


class OtherEndGone(BaseException):
    """The process at the other end has ended. No Exception: tests that expect any error must not take it for one."""


class Channel:
    """Asks the other end, and meanwhile answers what it asks."""

    def __init__(self, descriptor: int, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._descriptor = descriptor
        self._answer = answer

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
            raise CannotCross(f"a value of {len(raw)} bytes")
        raw = struct.pack("<I", len(raw)) + raw
        try:
            while raw:
                raw = raw[os.write(self._descriptor, raw) :]
        except OSError:
            raise OtherEndGone from None

    def receive(self) -> dict[str, Any]:
        (length,) = struct.unpack("<I", self._read(4))
        if length > MAX_FRAME_BYTES:
            raise OtherEndGone
        message = json.loads(self._read(length))
        if not isinstance(message, dict):
            raise OtherEndGone
        return message

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            try:
                part = os.read(self._descriptor, min(length, 1 << 16))
            except OSError:
                part = b""
            if not part:
                raise OtherEndGone
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def encoded_call(arguments: Sequence[object], named: Mapping[str, object], other: Encode) -> dict[str, Any]:
    return {
        "arguments": [encode(argument, other) for argument in arguments],
        "named": {name: encode(value, other) for name, value in named.items()},
    }


def decoded_call(message: dict[str, Any], other: Decode) -> tuple[list[Any], dict[str, Any]]:
    arguments = [decode(argument, other) for argument in message["arguments"]]
    return arguments, {name: decode(value, other) for name, value in message.get("named", {}).items()}


COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
_ASKED = ("neg", "pos", "invert", "index", "getitem", "setitem", "delitem")
OPERATIONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in (*COMPARISONS, *BINARY, *_ASKED)
} | {
    "getattr": getattr,
    "setattr": setattr,
    "isinstance": isinstance,
    "len": len,
    "iter": iter,
    "next": next,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "repr": repr,
    "abs": abs,
    "round": round,
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager: type(manager).__exit__(manager, None, None, None),
}


class SolutionEnd:
    """The end of the code under test: finds names, calls, and keeps what is no plain value for as long as it lives."""

    def __init__(self, descriptor: int, module: types.ModuleType) -> None:
        self._module = module
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}
        self.channel = Channel(descriptor, self._answer)

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            if message["do"] == "name":
                return self._name(message["name"])
            arguments, named = decoded_call(message, self._decode_other)
            function = arguments.pop(0) if message["do"] == "call" else OPERATIONS[message["do"]]
            reply: dict[str, Any] = {"value": encode(function(*arguments, **named), self._encode_other)}
            if message["do"] == "call":
                reply["changed"] = self._changed(message["arguments"][1:], arguments)
            return reply
        except OtherEndGone:
            raise
        except BaseException as error:
            return {"raised": _described(error)}

    def _name(self, name: str) -> dict[str, Any]:
        if not hasattr(self._module, name):
            return {"missing": True}
        value = getattr(self._module, name)
        if isinstance(value, types.ModuleType):
            return {"module": True}
        if isinstance(value, type) and issubclass(value, BaseException):
            return {"exception": [kind.__name__ for kind in value.__mro__]}
        return {"value": encode(value, self._encode_other)}

    def _changed(self, before: list[Any], arguments: list[Any]) -> dict[str, Any]:
        """The arguments that the call has changed in place, by position."""
        changed = {}
        for place, (encoded, argument) in enumerate(zip(before, arguments, strict=True)):
            if type(argument).__name__ in _CHANGEABLE:
                after = encode(argument, self._encode_other)
                if after != encoded:
                    changed[str(place)] = after
        return changed

    def _encode_other(self, value: object) -> dict[str, Any]:
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
        reference = {"t": "ref", "v": number}
        base = plain_values.base_value(value)
        return reference if base is value else reference | {"base": encode(base, self._encode_other)}

    def _decode_other(self, encoded: dict[str, Any]) -> Any:
        if encoded["t"] == "ref":
            return self._kept[encoded["v"]]
        if encoded["t"] == "builtin":
            return getattr(builtins, encoded["v"])
        return self._callback(encoded["v"])

    def _callback(self, number: int) -> Callable[..., Any]:
        """A function of the tests'."""

        def call(*arguments: object, **named: object) -> Any:
            asked = encoded_call(arguments, named, self._encode_other)
            reply = self.channel.ask({"do": "callback", "number": number, **asked})
            if "raised" in reply:
                raise exception_from(reply["raised"], {})
            return decode(reply["value"], self._decode_other)

        return call


def _described(error: BaseException) -> dict[str, Any]:
    try:
        text = str(error)[:2000]
    except Exception:
        text = ""
    return {"kinds": [kind.__name__ for kind in type(error).__mro__], "message": text}


def exception_from(described: dict[str, Any], known: dict[str, type[Exception]]) -> Exception:
    """An exception of the nearest kind that exists at this end."""
    for name in described["kinds"]:
        kind = known.get(name) or getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            error = kind.__new__(kind)
            error.args = (str(described["message"]),)
            return error
    return RuntimeError(f"{described['kinds'][0]}: {described['message']}")
