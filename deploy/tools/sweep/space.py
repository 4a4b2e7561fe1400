"""What a sweep varies: ranges and choices of settings, as they are written on the command line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.settings import COMMAND_LINE, parse_override

_HOW = "write learner.learning_rate=1e-4..1e-2:log, algorithm.epochs=2..10 or algorithm.clip_range=0.1,0.2"


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    setting: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """From low to high, both included; whole numbers where both are."""

    setting: str
    low: float
    high: float
    log: bool

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Dimension = Choices | Range


def parse_dimension(text: str) -> Dimension:
    """`KEY=LOW..HIGH`, `KEY=LOW..HIGH:log`, `KEY=A,B,C`.

    Raises:
      BadInput: for anything else.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise BadInput(f"--search {text!r} ({COMMAND_LINE}): {_HOW}")
    setting = key.strip()
    if ".." in value:
        return _range(setting, value, text)
    if value.lstrip().startswith("["):  # values that are lists themselves
        values = parse_override(f"{setting}={value}")[1]
    else:
        values = [parse_override(f"{setting}={part}")[1] for part in value.split(",") if part.strip()]
    if not isinstance(values, list) or len(values) < 2:
        raise BadInput(f"--search {text!r} ({COMMAND_LINE}): one value is nothing to choose from; {_HOW}")
    return Choices(setting, tuple(values))


def _range(setting: str, value: str, text: str) -> Range:
    span, _, scale = value.partition(":")
    low, high = (parse_override(f"{setting}={part.strip() or 'null'}")[1] for part in span.split("..", 1))
    numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in (low, high))
    if not numbers or scale not in ("", "log") or not low < high or (scale == "log" and low <= 0):
        raise BadInput(f"--search {text!r} ({COMMAND_LINE}): no range of numbers, the lower first; {_HOW}")
    return Range(setting, low, high, scale == "log")


def grid(dimensions: Sequence[Dimension]) -> Iterator[Mapping[str, Any]]:
    """Every combination of the choices, in order.

    Raises:
      BadInput: for a range, which has no end of values.
    """
    for dimension in dimensions:
        if isinstance(dimension, Range):
            raise BadInput(f"{dimension.setting} is a range: say how many values of it to try, with --trials N")
    names = [dimension.setting for dimension in dimensions]
    choices = [dimension.values for dimension in dimensions if isinstance(dimension, Choices)]
    yield from (dict(zip(names, values, strict=True)) for values in itertools.product(*choices))
