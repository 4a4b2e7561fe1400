"""One line of the consumption log: what a learner says of one trajectory, with a checksum that ties it to the line
before. Must never touch a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

import xxhash

CHANGED = "its content was changed: the checksum does not fit"
FOREIGN = "not a line of a consumption log"
MOVED = "does not follow the line before it: lines were removed, doubled or moved"

_quoted = json.JSONEncoder().encode  # as json.dumps does it, without looking for settings each time


@dataclass(frozen=True, slots=True)
class Consumed:
    """One trajectory that went into a learner step."""

    step: int
    epoch: int
    ticket_id: int
    attempt: int
    min_version: int
    digest: str
    reward_version: str = ""  # of the model that scored it; empty: the env or task itself

    def line(self, after: str) -> str:
        """With the checksum of the line before (`after`) and its own (`sum`): a line that was changed, removed, doubled
        or moved shows."""
        return self.line_and_sum(after)[0]

    def line_and_sum(self, after: str) -> tuple[str, str]:
        """As json.dumps would write it: once a ticket, so not by way of a dictionary."""
        texts = (_quoted(self.digest), _quoted(self.reward_version), _quoted(after))
        content = (
            f'{{"step": {self.step}, "epoch": {self.epoch}, "ticket_id": {self.ticket_id}, "attempt": {self.attempt}, '
            f'"min_version": {self.min_version}, "digest": {texts[0]}, "reward_version": {texts[1]}, '
            f'"after": {texts[2]}}}'
        )
        checksum = xxhash.xxh3_64_hexdigest(content.encode())
        return f'{content[:-1]}, "sum": "{checksum}"}}\n', checksum


@dataclass(frozen=True, slots=True)
class LogReading:
    """A log as it was found. `problems` are (line number, what is wrong with it); lines count from 1."""

    lines: tuple[tuple[int, Consumed], ...]
    problems: tuple[tuple[int, str], ...]
    torn: bool  # the last line has no end: its writer was killed
    last_sum: str = ""  # of the last line


def read_lines(text: str, *, first: int = 1, after: str = "") -> LogReading:
    """The lines of a log, or of a part of one: that from line number `first` on, which follows the checksum `after`."""
    *whole, rest = text.split("\n")
    lines: list[tuple[int, Consumed]] = []
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(whole, start=first):
        consumed, said_after = parse_line(line)
        if consumed is None:
            problems.append((number, FOREIGN))
            after = "unknown"
            continue
        lines.append((number, consumed))
        if consumed.line(said_after) != line + "\n":
            problems.append((number, CHANGED))
        elif said_after != after and after != "unknown":
            problems.append((number, MOVED))
        after = sum_of(line)
    return LogReading(tuple(lines), tuple(problems), bool(rest), after)


def parse_line(line: str) -> tuple[Consumed | None, str]:
    try:
        record = json.loads(line)
        after = record["after"]
        consumed = Consumed(**{item.name: record[item.name] for item in fields(Consumed)})
    except (ValueError, KeyError, TypeError):
        return None, ""
    numbers = (consumed.step, consumed.epoch, consumed.ticket_id, consumed.attempt, consumed.min_version)
    if not all(type(number) is int for number in numbers) or not isinstance(after, str):
        return None, ""
    return consumed, after


def sum_of(line: str) -> str:
    """The checksum that a line gives for itself; "unknown" if it gives none."""
    try:
        return str(json.loads(line)["sum"])
    except (ValueError, KeyError, TypeError):
        return "unknown"


def first_sum(content: bytes) -> str:
    """The same of the first of many lines."""
    return sum_of(content.partition(b"\n")[0].decode(errors="replace"))
