"""The tests' end of the channel. What comes over it is rebuilt here as plain values, as copies of the preamble's
objects and as Remotes, whatever the code has done at its own end. Runs inside the sandbox of the tests, from the
standard library alone."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from rollcall.reward_service.sandbox.given import Given
from rollcall.reward_service.sandbox.plain_values import CannotCross, decode, encode
from rollcall.reward_service.sandbox.raised import Describe, Rebuild
from rollcall.reward_service.sandbox.solution_channel import Channel, OtherEndGone
from rollcall.reward_service.sandbox.solution_proxy import (
    Inside,
    Remote,
    Words,
    async_generator,
    coroutine,
    generator,
    inside_of,
)

_REBUILT_AS: dict[str, Callable[..., Any]] = {
    "generator": generator,
    "coroutine": coroutine,
    "async_generator": async_generator,
}


class JudgingEnd:
    """Gives a test the names it uses, and carries its calls."""

    def __init__(self, descriptor: int, given: Given, words: Words) -> None:
        self.words = words
        self._given = given
        self._describe = Describe(given)
        self._rebuild = Rebuild(given, self._decode_other)
        self._callbacks: list[Callable[..., Any]] = []
        self._running: dict[int, Any] = {}  # generators and coroutines, by number
        self._numbers: dict[int, int] = {}  # of those, by id
        self._channel = Channel(descriptor, self._answer)
        self.loaded = self._channel.receive()  # {} once the code has run; else what it raised
        self.assertion: AssertionError | None = None  # of the tests', in a function that the code called

    @property
    def gone(self) -> bool:
        return self._channel.gone

    def named(self, name: str, *, makes: bool) -> tuple[Any, ...]:
        """What the code has under a name; empty if it has none."""
        reply = self._asked({"do": "name", "name": name})
        if "value" not in reply or (isinstance(reply["value"], dict) and reply["value"].get("t") == "module"):
            return ()
        value = decode(reply["value"], self._decode_other)
        if type(value) is Remote:
            inside = inside_of(value)
            inside.makes, inside.known = makes, makes and name[:1].isupper()
        return (value,)

    def call(self, target: Remote, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        reply = self._ask("call", (target, *arguments), named)
        for place, changed in reply.get("changed", {}).items():
            _replace(arguments[int(place)], decode(changed, self._decode_other))
        return self._value(reply)

    def operate(self, name: str, *arguments: object) -> Any:
        return self._value(self._ask(name, arguments, {}))

    def step(self, name: str, *arguments: object) -> tuple[bool, Any]:
        reply = self._ask(name, arguments, {})
        if "stop" in reply:
            return True, decode(reply["stop"], self._decode_other)
        return False, self._value(reply)

    def _ask(self, do: str, arguments: tuple[object, ...], named: dict[str, object]) -> dict[str, Any]:
        message = {
            "do": do,
            "arguments": [encode(argument, self._encode_other) for argument in arguments],
            "named": {name: encode(value, self._encode_other) for name, value in named.items()},
        }
        return self._asked(message | {"records": self._given.take_records(self._encode_other)})

    def _asked(self, message: dict[str, Any]) -> dict[str, Any]:
        reply = self._channel.ask(message)
        self._given.read_records(reply.get("records", {}), self._decode_other)
        return reply

    def _value(self, reply: dict[str, Any]) -> Any:
        if "raised" in reply:
            raise self._rebuild.error(reply["raised"])
        return decode(reply["value"], self._decode_other)

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The code calls back a function that the tests gave it; it can ask for nothing else."""
        try:
            self._given.read_records(message["records"], self._decode_other)
            number = message["number"]
            if number not in range(len(self._callbacks)):
                raise IndexError("the tests gave no such function")
            arguments = [decode(argument, self._decode_other) for argument in message["arguments"]]
            named = {name: decode(value, self._decode_other) for name, value in message["named"].items()}
            reply = {"value": encode(self._callbacks[number](*arguments, **named), self._encode_other)}
        except OtherEndGone:
            raise
        except BaseException as error:
            if isinstance(error, AssertionError):
                self.assertion = error
            reply = {"raised": self._describe.raised(error)}
        return reply | {"records": self._given.take_records(self._encode_other)}

    def _encode_other(self, value: object) -> dict[str, Any]:
        if type(value) is Remote:
            return {"t": "ref", "v": inside_of(value).number}
        if id(value) in self._numbers:
            return {"t": "ref", "v": self._numbers[id(value)]}
        given = self._given.encode(value, self._encode_other)
        if given is not None:
            return given
        name = getattr(value, "__name__", "")
        if callable(value) and getattr(builtins, name, None) is value:
            return {"t": "builtin", "v": name}
        if callable(value):
            self._callbacks.append(value)
            return {"t": "callback", "v": len(self._callbacks) - 1, "name": str(name)}
        raise CannotCross(f"the test hands over a {type(value).__name__}, which only exists on its own side")

    def _decode_other(self, encoded: dict[str, Any]) -> Any:
        if encoded["t"] == "exception":
            return self._rebuild.kind(encoded["v"])
        if encoded["t"] != "ref":
            return self._given.decode(encoded, self._decode_other)
        number = int(encoded["v"])
        if number in self._running:
            return self._running[number]
        base = (decode(encoded["base"], self._decode_other),) if "base" in encoded else ()
        claims = self._given.classes.get(encoded.get("claims", ""))
        iterator = encoded.get("iterator") is True
        remote = Remote(Inside(self, number, base, iterator=iterator, claims=claims))
        rebuilt = _REBUILT_AS.get(encoded.get("as", ""))
        if rebuilt is None:
            return remote
        running = self._running[number] = rebuilt(self, remote)
        self._numbers[id(running)] = number
        return running


def _replace(old: Any, new: Any) -> None:
    """Gives a changeable value another content, in place."""
    if type(old) is not type(new):
        return
    if isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, (set, dict)):
        old.clear()
        old.update(new)
    elif hasattr(old, "extend"):
        old.clear()
        old.extend(new)
