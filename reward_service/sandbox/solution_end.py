"""The end of the code under test: finds the names that tests ask for, calls, and keeps what is no plain value for as
long as it lives. Runs in the same interpreter as the code, so nothing rests on it. Standard library alone."""

from __future__ import annotations

import builtins
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rollcall.reward_service.sandbox.given import Given
from rollcall.reward_service.sandbox.plain_values import base_value, decode, encode
from rollcall.reward_service.sandbox.raised import Describe, Rebuild
from rollcall.reward_service.sandbox.solution_channel import OPERATIONS, Channel, OtherEndGone

if TYPE_CHECKING:
    import asyncio

_CHANGEABLE = ("list", "dict", "set", "bytearray", "deque", "OrderedDict", "Counter", "defaultdict")
_REBUILT_AS = {
    types.GeneratorType: "generator",
    types.CoroutineType: "coroutine",
    types.AsyncGeneratorType: "async_generator",
}


class SolutionEnd:
    """Answers one test."""

    def __init__(self, descriptor: int, module: types.ModuleType, given: Given) -> None:
        self._module = module
        self._given = given
        self._describe = Describe(given)
        self._rebuild = Rebuild(given, self._decode_other)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}
        self.channel = Channel(descriptor, self._answer)

    def describe(self, error: BaseException) -> dict[str, Any]:
        return self._describe.raised(error)

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = self._answered(message)
        except OtherEndGone:
            raise
        except BaseException as error:
            reply = {"raised": self._describe.raised(error)}
        try:
            return reply | {"records": self._given.take_records(self._encode_other)}
        except Exception as error:
            return {"raised": self._describe.raised(error)}

    def _answered(self, message: dict[str, Any]) -> dict[str, Any]:
        do = message["do"]
        if do == "name":
            return self._name(message["name"])
        self._given.read_records(message["records"], self._decode_other)
        arguments = [decode(argument, self._decode_other) for argument in message["arguments"]]
        named = {name: decode(value, self._decode_other) for name, value in message["named"].items()}
        if do == "call":
            try:
                value = arguments[0](*arguments[1:], **named)
            finally:
                changed = self._changed(message["arguments"], arguments)
            return {"value": encode(value, self._encode_other), "changed": changed}
        if do in ("next", "send", "anext"):
            try:
                value = self._awaited(arguments[0].__anext__()) if do == "anext" else OPERATIONS[do](*arguments)
            except (StopIteration, StopAsyncIteration) as end:
                return {"stop": encode(getattr(end, "value", None), self._encode_other)}
        elif do == "base":
            value = base_value(arguments[0])
        else:
            value = self._awaited(arguments[0]) if do == "await" else OPERATIONS[do](*arguments)
        return {"value": encode(value, self._encode_other)}

    def _awaited(self, awaitable: Any) -> Any:
        import asyncio  # seldom needed, and slow to import

        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(awaitable)

    def _name(self, name: str) -> dict[str, Any]:
        if not hasattr(self._module, name):
            return {"missing": True}
        return {"value": encode(getattr(self._module, name), self._encode_other)}

    def _changed(self, before: list[Any], arguments: list[Any]) -> dict[str, Any]:
        """The arguments that the call has changed in place, by position. Those of the preamble's classes are written
        as records, whatever holds them."""
        changed = {}
        for place, (encoded, argument) in enumerate(zip(before, arguments, strict=True)):
            after = encode(argument, self._encode_other)
            if place and type(argument).__name__ in _CHANGEABLE and after != encoded:
                changed[str(place - 1)] = after
        return changed

    def _encode_other(self, value: object) -> dict[str, Any]:
        if isinstance(value, types.ModuleType):
            return {"t": "module"}
        given = self._given.encode(value, self._encode_other)
        if given is not None:
            return given
        if isinstance(value, type) and issubclass(value, BaseException):
            return {"t": "exception", "v": self._describe.kinds(value)}
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
        reference = {"t": "ref", "v": number, "as": _REBUILT_AS.get(type(value), "")}
        if hasattr(type(value), "__next__"):
            reference["iterator"] = True
        if (name := self._given.claimed(value)) is not None:
            reference["claims"] = name
        base = base_value(value)
        return reference if base is value else reference | {"base": encode(base, self._encode_other)}

    def _decode_other(self, encoded: dict[str, Any]) -> Any:
        if encoded["t"] == "ref":
            return self._kept[encoded["v"]]
        if encoded["t"] == "builtin":
            return getattr(builtins, encoded["v"])
        if encoded["t"] == "callback":
            return self._callback(encoded["v"], encoded["name"])
        return self._given.decode(encoded, self._decode_other)

    def _callback(self, number: int, name: str) -> Callable[..., Any]:
        """A function of the tests'."""

        def call(*arguments: object, **named: object) -> Any:
            message = {
                "do": "callback",
                "number": number,
                "arguments": [encode(argument, self._encode_other) for argument in arguments],
                "named": {name: encode(value, self._encode_other) for name, value in named.items()},
            }
            reply = self.channel.ask(message | {"records": self._given.take_records(self._encode_other)})
            self._given.read_records(reply["records"], self._decode_other)
            if "raised" in reply:
                raise self._rebuild.error(reply["raised"])
            return decode(reply["value"], self._decode_other)

        call.__name__ = call.__qualname__ = name
        return call
