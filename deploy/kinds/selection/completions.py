"""Scored completions of prompts as records, the rule by which some are kept, and the file that has each prompt once.
Must never know how they were sampled or who scored them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import append_whole, once_there_is_room
from rollcall.cluster.inputs.json_lines import parse_object
from rollcall.deploy.config.selection_config import KeepConfig


@dataclass(frozen=True)
class Completion:
    """One that was sampled."""

    text: str
    score: float
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    components: Mapping[str, float] = field(default_factory=dict)  # of the score

    @property
    def is_whole(self) -> bool:
        """Whether it can be imitated: it came to its own end, and says something."""
        return self.finish_reason == "stop" and bool(self.text.strip())


@dataclass(frozen=True)
class Answered:
    """A prompt and its completions, in the order of their seeds."""

    row: int  # of the task's training rows
    source: str  # "train.jsonl:12"
    prompt: str
    completions: tuple[Completion, ...]
    scorer: str  # by version
    policy_version: int

    def kept(self, rule: KeepConfig) -> list[int]:
        """Which completions are kept, the best first; of equal scores the one that was sampled first."""
        passed = [i for i in self._distinct() if rule.at_least is None or self.completions[i].score >= rule.at_least]
        return sorted(passed, key=lambda i: -self.completions[i].score)[: rule.best]

    def pair(self, rule: KeepConfig) -> tuple[int, int] | None:
        """(the best that is kept, the worst): none where nothing is kept, or nothing is worse."""
        kept, others = self.kept(rule), self._distinct()
        if not kept:
            return None
        worst = min(others, key=lambda i: self.completions[i].score)
        return (kept[0], worst) if self.completions[worst].score < self.completions[kept[0]].score else None

    def labelled(self, rule: KeepConfig) -> list[tuple[int, bool]]:
        """Each different completion, and whether it passed the threshold. Without one there is nothing to say: the best
        of bad ones is not good."""
        if rule.at_least is None:
            return []
        return [(i, self.completions[i].score >= rule.at_least) for i in self._distinct()]

    def _distinct(self) -> list[int]:
        """Of those that are whole, the first of each text."""
        first: dict[str, int] = {}
        for i, completion in enumerate(self.completions):
            if completion.is_whole:
                first.setdefault(completion.text, i)
        return list(first.values())

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Answered:
        """Raises TypeError, KeyError: where it is no such line."""
        completions = tuple(Completion(**completion) for completion in values["completions"])
        return cls(**{**values, "completions": completions})


class AnsweredFile:
    """A line a prompt, each prompt once. A line that a killed process left half written is taken away; what stands is
    never written again."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput: naming the line that is no prompt's, or the second one of a prompt."""
        self.path = path
        self._places: dict[int, int] = {}  # row -> where its line begins
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        begin = 0
        for number, line in enumerate(self._lines(), start=1):
            try:
                row = Answered.of(parse_object(line.decode())).row
            except (ValueError, TypeError, KeyError) as error:
                raise self._damaged(number, str(error)) from None
            if row in self._places:
                raise self._damaged(number, f"row {row} has a line already")
            self._places[row] = begin
            begin += len(line)
        os.ftruncate(self._file, begin)

    @property
    def rows(self) -> frozenset[int]:
        return frozenset(self._places)

    def add(self, answered: Answered) -> None:
        """Raises OSError: where the disk does not take it within the patience that files have."""
        assert answered.row not in self._places, f"row {answered.row} a second time"
        content = answered.line().encode(errors="replace")
        once_there_is_room(lambda: append_whole(self._file, content), self.path.parent)
        self._places[answered.row] = os.fstat(self._file).st_size - len(content)

    def read(self, rows: Sequence[int] | None = None) -> Iterator[Answered]:
        """In the order of the rows (of those that are named, and there), whenever each was answered."""
        wanted = self._places.keys() if rows is None else self._places.keys() & set(rows)
        with self.path.open("rb") as file:
            for row in sorted(wanted):
                file.seek(self._places[row])
                yield Answered.of(json.loads(file.readline()))

    def close(self) -> None:
        with suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))

    def _damaged(self, number: int, why: str) -> BadInput:
        os.close(self._file)
        return BadInput(f"{self.path}:{number}: {why}; remove the line: its prompt is answered again")
