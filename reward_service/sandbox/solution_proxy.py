"""The tests' end of the channel: what tests see of the code they test. Plain values are rebuilt here; everything else
is a `Remote`, which is asked but never trusted to say what it is equal to. Runs inside the sandbox of the tests, from
the standard library alone."""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rollcall.reward_service.sandbox.plain_values import CannotCross, decode, encode
from rollcall.reward_service.sandbox.solution_channel import (
    BINARY,
    COMPARISONS,
    OPERATIONS,
    Channel,
    OtherEndGone,
    decoded_call,
    encoded_call,
    exception_from,
)


class JudgingEnd:
    """Gives a test the names it uses, and carries its calls."""

    def __init__(self, descriptor: int) -> None:
        self._remotes: dict[int, Remote] = {}
        self._callbacks: list[Callable[..., Any]] = []
        self._exceptions: dict[str, type[Exception]] = {}
        self._channel = Channel(descriptor, self._answer)
        self.loaded = self._channel.receive()  # {} once the code has run; else what it raised

    def names(self, test: ast.Module, entry_point: str | None) -> dict[str, Any]:
        """What the code under test has of the names that a test uses. It cannot put itself in the place of a builtin,
        unless the tests call it by that name (`entry_point`)."""
        used = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
        wanted = {name for name in used if not hasattr(builtins, name)} | ({entry_point} if entry_point else set())
        found: dict[str, Any] = {}
        for name in sorted(wanted):
            reply = self._channel.ask({"do": "name", "name": name})
            if reply.get("module") and name in sys.stdlib_module_names:
                found[name] = importlib.import_module(name)  # what the code imported, from here
            elif "exception" in reply:
                found[name] = self._exception([str(kind) for kind in reply["exception"]])
            elif "value" in reply:
                found[name] = decode(reply["value"], self._decode_other)
        return found

    def call(self, target: Remote, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        asked = encoded_call((target, *arguments), named, self._encode_other)
        reply = self._channel.ask({"do": "call", **asked})
        for place, changed in reply.get("changed", {}).items():
            _replace(arguments[int(place)], decode(changed, self._decode_other))
        return self._result(reply)

    def operate(self, name: str, *arguments: object) -> Any:
        return self._result(self._channel.ask({"do": name, **encoded_call(arguments, {}, self._encode_other)}))

    def _result(self, reply: dict[str, Any]) -> Any:
        if "raised" in reply:
            raise exception_from(reply["raised"], self._exceptions)
        return decode(reply["value"], self._decode_other)

    def _exception(self, kinds: list[str]) -> type[Exception]:
        bases = [getattr(builtins, kind, None) for kind in kinds]
        base = next((b for b in bases if isinstance(b, type) and issubclass(b, Exception)), Exception)
        return self._exceptions.setdefault(kinds[0], type(kinds[0], (base,), {}))

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The code calls back a function that the tests gave it; it can ask for nothing else."""
        try:
            function = self._callbacks[message["number"]]
            arguments, named = decoded_call(message, self._decode_other)
            return {"value": encode(function(*arguments, **named), self._encode_other)}
        except Exception as error:
            return {"raised": {"kinds": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}}

    def _encode_other(self, value: object) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"t": "ref", "v": _inside(value)[1]}
        name = getattr(value, "__name__", "")
        if callable(value) and getattr(builtins, name, None) is value:
            return {"t": "builtin", "v": name}
        if callable(value):
            self._callbacks.append(value)
            return {"t": "callback", "v": len(self._callbacks) - 1}
        raise CannotCross(f"the test hands over a {type(value).__name__}, which only exists on its own side")

    def _decode_other(self, encoded: dict[str, Any]) -> Remote:
        if encoded["t"] != "ref":
            raise OtherEndGone
        number = int(encoded["v"])
        if number not in self._remotes:
            base = (decode(encoded["base"], self._decode_other),) if "base" in encoded else ()
            self._remotes[number] = Remote(self, number, base)
        return self._remotes[number]


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


class Remote:
    """Something of the other end that is no plain value: a function, a class, an object, a generator.

    What it is asked is answered there, in plain values that the test then judges here. It is never compared or reckoned
    with a plain value but through the plain value in it (of a namedtuple, say): its own __eq__ could claim to be equal
    to anything, and its own __sub__ to differ by 0 from whatever the test expects.
    """

    __slots__ = ("_Remote__base", "_Remote__end", "_Remote__number")

    def __init__(self, end: JudgingEnd, number: int, base: tuple[Any, ...]) -> None:
        object.__setattr__(self, "_Remote__end", end)
        object.__setattr__(self, "_Remote__number", number)
        object.__setattr__(self, "_Remote__base", base)

    def __call__(self, *arguments: object, **named: object) -> Any:
        return _inside(self)[0].call(self, arguments, named)

    def __getattr__(self, name: str) -> Any:
        return _inside(self)[0].operate("getattr", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        _inside(self)[0].operate("setattr", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        end = _inside(self)[0]
        iterator = end.operate("iter", self)
        while True:
            try:
                yield end.operate("next", iterator)
            except StopIteration:
                return

    def __contains__(self, value: object) -> bool:
        base = _inside(self)[2]
        return value in (base[0] if base else list(self))

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Remote) and _inside(self)[0].operate("isinstance", instance, self) is True

    def __hash__(self) -> int:
        base = _inside(self)[2]
        return hash(base[0]) if base else object.__hash__(self)

    def __exit__(self, *exception: object) -> None:
        _inside(self)[0].operate("exit", self)


def _inside(remote: Remote) -> tuple[JudgingEnd, int, tuple[Any, ...]]:
    get = object.__getattribute__
    return get(remote, "_Remote__end"), get(remote, "_Remote__number"), get(remote, "_Remote__base")


def _asked(name: str) -> Callable[..., Any]:
    def method(self: Remote, *arguments: object) -> Any:
        return _inside(self)[0].operate(name, self, *arguments)

    return method


def _reckoned(name: str, *, swapped: bool) -> Callable[[Remote, Any], Any]:
    def method(self: Remote, other: object) -> Any:
        end, _, base = _inside(self)
        if isinstance(other, Remote):
            return end.operate(name, other, self) if swapped else end.operate(name, self, other)
        if not base:
            return NotImplemented
        return OPERATIONS[name](other, base[0]) if swapped else OPERATIONS[name](base[0], other)

    return method


def _compared(name: str) -> Callable[[Remote, Any], Any]:
    def method(self: Remote, other: object) -> Any:
        end, number, base = _inside(self)
        if not isinstance(other, Remote):
            return getattr(base[0], f"__{name}__")(other) if base else NotImplemented
        _, other_number, other_base = _inside(other)
        if base and other_base:
            return getattr(base[0], f"__{name}__")(other_base[0])
        if number == other_number and name in ("eq", "ne"):
            return name == "eq"
        return end.operate(name, self, other) is True

    return method


for _name in OPERATIONS:
    _method = f"__{_name.rstrip('_')}__"
    if _name in COMPARISONS:
        setattr(Remote, _method, _compared(_name))
    elif _name in BINARY:
        setattr(Remote, _method, _reckoned(_name, swapped=False))
        setattr(Remote, f"__r{_name.rstrip('_')}__", _reckoned(_name, swapped=True))
    elif _method not in vars(Remote) and _name not in ("isinstance", "iter"):
        setattr(Remote, _method, _asked(_name))
