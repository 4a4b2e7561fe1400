"""How an exception crosses: by its kinds, plain arguments and plain attributes. What the code under test raises arrives
at the tests as an exception of the same kind, so that tests may expect it; but nothing by which Python itself ends a
loop, a generator or a process is among them. Standard library alone."""

from __future__ import annotations

import builtins
import importlib
from contextlib import suppress
from typing import Any

from rollcall.reward_service.sandbox.given import Given
from rollcall.reward_service.sandbox.plain_values import CannotCross, Decode, decode, encode

# Of the standard library's exceptions, those that say what was wrong with a value; none that a test runner acts on.
_MODULES = {
    "array",
    "asyncio.exceptions",
    "asyncio.queues",
    "base64",
    "binascii",
    "configparser",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "_queue",
    "graphlib",
    "http.client",
    "ipaddress",
    "json.decoder",
    "lzma",
    "queue",
    "re",
    "sqlite3",
    "statistics",
    "struct",
    "subprocess",
    "tokenize",
    "urllib.error",
    "uuid",
    "xml.etree.ElementTree",
    "xml.parsers.expat",
    "zlib",
    "zoneinfo",
    "zoneinfo._common",
}
_TEXT_BYTES = 2000


class CodeRaised(RuntimeError):
    """Of the code under test, and of no kind that the tests know."""


def _stand_in(name: str) -> type[CodeRaised]:
    return type(name, (CodeRaised,), {"__module__": "builtins"})


# Raised by the code, these would end a loop of the tests' (`all(map(...))`), or the tests, as if all were well.
STAND_INS = {
    name: _stand_in(name)
    for name in ("StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "KeyboardInterrupt")
}


class Describe:
    """The raising end: exceptions as JSON."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._classes: list[type] = []

    def kinds(self, kind: type) -> list[list[Any]]:
        """Itself and its bases, each as where it is from and its name there."""
        return [self._place(each) for each in type.__dict__["__mro__"].__get__(kind) if each is not object]

    def _place(self, kind: type) -> list[Any]:
        name = str(kind.__name__)
        if getattr(builtins, name, None) is kind:
            return ["builtins", name]
        if (given := self._given.class_name(kind)) is not None:
            return ["given", given]
        if kind.__module__ in _MODULES:
            return [kind.__module__, name]
        if kind not in self._classes:
            self._classes.append(kind)
        return ["code", name, self._classes.index(kind)]

    def raised(self, error: BaseException) -> dict[str, Any]:
        try:
            text = str(error)[:_TEXT_BYTES]
        except Exception:
            text = ""
        described: dict[str, Any] = {
            "kinds": self.kinds(type(error)),
            "message": text,
            "arguments": [text],
            "state": {},
        }
        with suppress(CannotCross, RecursionError):
            described["arguments"] = [encode(argument) for argument in error.args]
        for name, value in getattr(error, "__dict__", {}).items():
            with suppress(CannotCross, RecursionError):
                described["state"][name] = encode(value)
        return described


class Rebuild:
    """The other end: the JSON as exceptions of its own."""

    def __init__(self, given: Given, other: Decode) -> None:
        self._given, self._other = given, other
        self._classes: dict[int, type[BaseException]] = {}

    def kind(self, kinds: list[list[Any]]) -> type[BaseException]:
        """The nearest there is; of the code's own classes one is made here."""
        for at, (place, name, *number) in enumerate(kinds):
            if place == "code":
                if number[0] not in self._classes:
                    base = self.kind(kinds[at + 1 :])
                    self._classes[int(number[0])] = type(str(name), (base,), {"__str__": _message})
                return self._classes[number[0]]
            found = self._found(str(place), str(name))
            ends_loop = isinstance(found, type) and issubclass(found, (StopIteration, StopAsyncIteration))
            if isinstance(found, type) and issubclass(found, Exception) and not ends_loop:
                return found
            if place == "builtins" and name in STAND_INS:
                return STAND_INS[name]
        return CodeRaised

    def _found(self, place: str, name: str) -> object:
        if place == "given":
            return self._given.names.get(name)
        if place == "builtins":
            return getattr(builtins, name, None)
        return getattr(importlib.import_module(place), name, None) if place in _MODULES else None

    def error(self, described: dict[str, Any]) -> BaseException:
        kind = self.kind(described["kinds"])
        arguments = tuple(decode(argument) for argument in described["arguments"])
        text = str(described["message"])
        error: BaseException
        try:
            if kind.__module__ != "builtins" and kind.__module__ not in _MODULES:
                raise TypeError("its __init__ is the code's")
            error = kind(*arguments)
        except Exception:
            error = kind.__new__(kind)
            error.args = arguments
        if kind in (STAND_INS["SystemExit"], STAND_INS["StopIteration"]):
            setattr(error, "code" if kind is STAND_INS["SystemExit"] else "value", next(iter(arguments), None))
        for name, value in described["state"].items():
            if not hasattr(kind, name) and not name.startswith("__"):
                setattr(error, name, decode(value))
        error.__dict__["_text"] = text
        return error


def _message(error: BaseException) -> str:
    return str(error.__dict__.get("_text", ""))
