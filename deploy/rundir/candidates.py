"""The journal of a search for a reward: which rewards a language model wrote, and what became of each. A line is on the
disk before anything follows from it, so that what was answered is not asked for again and what was trained is not
trained again, however the search was ended. Knows neither the model nor training."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rollcall.cluster.books.log_file import cut_torn_line
from rollcall.cluster.files import append_whole, once_there_is_room

JOURNAL = "candidates.jsonl"  # of the search's run directory
CANDIDATES = "candidates"  # of the search's run directory: the candidates' own
VIDEO = "video.gif"  # of a candidate's run directory


@dataclass(frozen=True)
class Candidate:
    """One reward that was asked for, and answered."""

    iteration: int  # from 1
    number: int  # within it, from 1
    parent: str | None  # the name of the one that the model was shown
    text: str  # the model's answer
    code: str | None  # of that; None: there is none in it
    begun: bool = False  # its training
    fitness: float | None = None  # once it is trained
    env_steps: int = 0  # that it was trained for
    problem: str | None = None  # why it is out, in one line

    @property
    def name(self) -> str:
        return name_of(self.iteration, self.number)

    @property
    def settled(self) -> bool:
        """Nothing more is to be done about it."""
        return self.fitness is not None or self.problem is not None


def name_of(iteration: int, number: int) -> str:
    """Of a candidate; also of its run."""
    return f"{iteration}-{number}"


def run_of(directory: Path, name: str) -> Path:
    """The run directory of a candidate."""
    return directory / CANDIDATES / name


def best_of(candidates: dict[str, Candidate]) -> Candidate | None:
    """The fittest; of several the one that came first."""
    fitted = [found for found in candidates.values() if found.fitness is not None]
    return max(fitted, key=lambda found: found.fitness or 0.0, default=None)


def read_candidates(directory: Path) -> dict[str, Candidate]:
    """By name, in order of iteration and number; empty where there is no journal. A line that a kill has cut short is
    left out."""
    path = directory / JOURNAL
    found: dict[str, Candidate] = {}
    for line in _whole_lines(path.read_bytes() if path.exists() else b""):
        _take(found, line)
    return _in_order(found)


class CandidateJournal:
    """The journal, to be written by the one driver that holds the run's lock."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / JOURNAL
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        cut_torn_line(self._path)  # which would spoil the next one
        self._directory = directory
        self._found = read_candidates(directory)

    def close(self) -> None:
        os.close(self._file)

    def candidates(self) -> dict[str, Candidate]:
        """As read_candidates."""
        return _in_order(self._found)

    def answered(self, iteration: int, number: int, *, parent: str | None, text: str, code: str | None) -> None:
        name = name_of(iteration, number)
        assert name not in self.candidates(), f"{name} was answered before"
        place = {"iteration": iteration, "number": number, "parent": parent}
        self._append({"event": "answered", "candidate": name, **place, "text": text, "code": code})

    def begun(self, name: str) -> None:
        self._append({"event": "begun", "candidate": name})

    def trained(self, name: str, *, fitness: float, env_steps: int) -> None:
        assert not self.candidates()[name].settled, f"{name} was trained before"
        self._append({"event": "trained", "candidate": name, "fitness": fitness, "env_steps": env_steps})

    def failed(self, name: str, problem: str) -> None:
        assert not self.candidates()[name].settled, f"{name} was trained before"
        self._append({"event": "failed", "candidate": name, "problem": problem})

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        once_there_is_room(lambda: append_whole(self._file, line), self._directory)
        os.fsync(self._file)
        _take(self._found, record)


def _in_order(found: dict[str, Candidate]) -> dict[str, Candidate]:
    return dict(sorted(found.items(), key=lambda item: (item[1].iteration, item[1].number)))


def _whole_lines(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.split(b"\n")[:-1]:
        record = json.loads(line)
        assert isinstance(record, dict)
        yield record


def _take(found: dict[str, Candidate], line: dict[str, Any]) -> None:
    name = str(line["candidate"])
    match line["event"]:
        case "answered":
            found[name] = Candidate(line["iteration"], line["number"], line["parent"], line["text"], line["code"])
        case "begun":
            found[name] = replace(found[name], begun=True)
        case "trained":
            found[name] = replace(found[name], fitness=line["fitness"], env_steps=line["env_steps"])
        case "failed":
            found[name] = replace(found[name], problem=line["problem"])
