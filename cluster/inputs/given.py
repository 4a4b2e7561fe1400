"""Objects that a program gives in place of names: an env factory of a notebook, say. They are attributes of this module
while the program runs, so `rollcall.cluster.inputs.given:NAME` names them like anything else. Processes of a run's own
cluster are given them too; whoever is outside it never is."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import sys
from collections.abc import Mapping

from rollcall.cluster.inputs.content import fingerprint

MODULE = __name__
PREFIX = f"{MODULE}:"

_given: dict[str, object] = {}
_UNTELLABLE = f"of_{os.urandom(3).hex()}"  # begins the marks of what no other process can tell from another
_numbers = itertools.count()


def name_of(thing: object, *, kept_as: str) -> str:
    """An import path for a class or function: its own, where other processes can import it; else one in this module,
    where it is kept. There the name ends with what the thing's content comes to, so that no other takes its place, and
    the same program finds it again when it is run anew. `kept_as`: its name where it has none, as a lambda."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    if module and module != "__main__" and name.isidentifier() and _importable(module, name, thing):
        return f"{module}:{name}"
    own = name.rpartition(".")[2]
    kept = own if own.isidentifier() and not own.startswith("_") else re.sub(r"\W", "_", kept_as)
    known = next((given for given, there in _given.items() if there is thing and given.startswith(f"{kept}_")), None)
    if known is None:
        known = f"{kept}_{fingerprint(thing) or f'{_UNTELLABLE}_{next(_numbers)}'}"
        _given[known] = thing
    return f"{PREFIX}{known}"


def named_in(path: str) -> str | None:
    """What a path of this module names; None: it is a path of another module."""
    return path.removeprefix(PREFIX) if path.startswith(PREFIX) else None


def shown(name: str) -> str:
    """A name of this module as people know the thing: without what tells it from others of that name."""
    return re.sub(r"_(of_[0-9a-f]{6}_\d+|[0-9a-f]{8})$", "", name)


def receive(things: Mapping[str, object]) -> None:
    """In a process of the same run: what the program was given."""
    _given.update(things)


def things_in(text: str) -> Mapping[str, object]:
    """Those that the JSON of some settings names."""
    return {name: thing for name, thing in _given.items() if f'"{PREFIX}{name}"' in text}


def _importable(module: str, name: str, thing: object) -> bool:
    """Whether a process that has the same files finds the same thing. Not what a program has put together itself."""
    found = sys.modules.get(module)
    if found is None or getattr(found, "__file__", None) is None:
        return False
    return getattr(importlib.import_module(module), name, None) is thing


class NotGiven(AttributeError):
    """A name of this module for which there is nothing in this process."""


def __getattr__(name: str) -> object:
    # An AttributeError like any other: torch asks all modules for names of its own.
    if name in _given:
        return _given[name]
    raise NotGiven(
        f"{shown(name)} was given as an object, and this process does not have it: train, resume and load_policy know "
        "it in the program that gave it; for all others put it into a module and give module:name"
    )
