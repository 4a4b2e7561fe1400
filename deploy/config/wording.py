"""How one line says what is wrong with a setting: its dotted path, its value, where that was written, what to do."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.cluster.inputs.passwords import without_passwords
from rollcall.deploy.config.catalogue.other_names import called_here
from rollcall.deploy.config.settings import KeyPath, Settings


def nearest_key(path: KeyPath, fields: Collection[KeyPath]) -> str:
    """A sibling that is spelt alike, else the same word in another section, else the nearest word anywhere."""
    called = called_here(path[-1], {".".join(known) for known in fields}, typed=".".join(path))
    if called:
        return called
    siblings = {known[-1]: known for known in fields if known[:-1] == path[:-1]}
    if not siblings:  # of a section whose kind decides what it has
        return ""
    elsewhere = {known[-1]: known for known in sorted(fields, key=len, reverse=True)}
    for names in (siblings, {n: p for n, p in elsewhere.items() if n == path[-1]}, elsewhere):
        hint = did_you_mean(path[-1], names)
        if hint:
            word = hint.removeprefix("; did you mean ").removesuffix("?")
            return f"; did you mean {'.'.join(names[word])}?"
    known_here = ", ".join(siblings) or "none"
    return f"; {'.'.join(path[:-1]) or 'a recipe'} has {known_here}"


def line_about(settings: Settings, path: Sequence[str], text: str, *, config: object = None) -> str:
    """`actors.num = 9 (command line): what is wrong`."""
    path = tuple(path)
    value: Any = config
    try:
        value, origin = settings.value(path), settings.origin(path)
    except KeyError:
        origin = "default"
        for part in path:
            value = getattr(value, part, None)
    shown = json.dumps(value) if value is None or isinstance(value, bool) else without_passwords(repr(value))
    return (
        f"{'.'.join(path)} = {shown if len(shown) <= 80 else shown[:77] + '...'} ({origin}): {' '.join(text.split())}"
    )
