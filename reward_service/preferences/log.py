"""The files that preferences are kept in: comparisons, segments by their digest, and a log of labels that is on the
disk before a label is acknowledged. The authority where Redis has forgotten.

  comparisons.jsonl      one a line, segments by digest
  labels.jsonl           what was said and what was taken back, in order
  segments/<digest>.json the wire's form, once, however many comparisons show it: Redis would hold it all in memory
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rollcall.cluster.errors import BadInput, StoreUnavailable
from rollcall.reward_service.preferences.files import first_problem
from rollcall.reward_service.preferences.records import Comparison, Label
from rollcall.reward_service.protocol import Segment

_log = logging.getLogger(__name__)


class Entry(BaseModel):
    """One line of labels.jsonl: a label, or the token of one that its rater took back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: Label | None = None
    withdrawn: str | None = None

    @property
    def name(self) -> tuple[str, str]:
        """The same for the same event, wherever it is written."""
        return ("label", self.label.token) if self.label is not None else ("withdrawn", self.withdrawn or "")

    def line(self) -> str:
        return self.model_dump_json(exclude_none=True)


@dataclass(frozen=True, slots=True)
class Books:
    """All that was asked and answered. `comparisons` are packed lines by id, in the order in which they came."""

    comparisons: dict[str, str]
    entries: list[Entry]

    def standing(self) -> list[Label]:
        """Labels that were not taken back, one a rater and comparison, in order."""
        withdrawn = {entry.withdrawn for entry in self.entries}
        standing: dict[tuple[str, str], Label] = {}
        for entry in self.entries:
            label = entry.label
            if label is not None and label.token not in withdrawn and label.comparison_id in self.comparisons:
                standing.setdefault((label.comparison_id, label.rater), label)
        return list(standing.values())


class PreferenceLog:
    """The files of one directory. Several processes may append; a line is never torn by another."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._comparisons = directory / "comparisons.jsonl"
        self._labels = directory / "labels.jsonl"
        self._read_segment = lru_cache(maxsize=128)(self._segment)  # a clip's two halves, and the export's repeats

    def open(self) -> None:
        """Makes the files, and cuts off what a crash left half written: nobody was told that it was kept."""
        (self.directory / "segments").mkdir(parents=True, exist_ok=True)
        for path in (self._comparisons, self._labels):
            with self._locked(), path.open("a+b") as file:
                file.seek(0)
                content = file.read()
                end = content.rfind(b"\n") + 1
                if end < len(content):
                    _log.warning("%s: the last line is half written; dropping it", path)
                    file.truncate(end)
                os.fsync(file.fileno())

    def append_comparisons(self, lines: Sequence[str]) -> None:
        self._append(self._comparisons, lines)

    def append_entries(self, entries: Iterable[Entry]) -> None:
        self._append(self._labels, [entry.line() for entry in entries])

    def read(self) -> Books:
        """What is on the disk, of a directory in use as well.

        Raises:
          BadInput: naming file and line of what is damaged.
        """
        comparisons: dict[str, str] = {}
        for source, line in _whole_lines(self._comparisons):
            try:
                comparisons.setdefault(str(json.loads(line)["id"]), line)
            except (ValueError, KeyError, TypeError):
                raise BadInput(f"{source}: no comparison: fix or remove the line") from None
        entries: list[Entry] = []
        for source, line in _whole_lines(self._labels):
            try:
                entries.append(Entry.model_validate_json(line))
            except ValidationError as error:
                raise BadInput(f"{source}: no label ({first_problem(error)}): fix or remove the line") from None
        return Books(comparisons, entries)

    def standing(self) -> Iterator[tuple[Comparison, Label]]:
        """Every label that stands, with what it is of."""
        books = self.read()
        for label in books.standing():
            yield self.unpack(books.comparisons[label.comparison_id]), label

    def pack(self, comparison: Comparison) -> str:
        """The comparison's line. Its segments are on the disk afterwards."""
        values = comparison.model_dump(mode="json", exclude_none=True)
        for candidate in values["candidates"]:
            if "segment" in candidate:
                candidate["segment"] = self._keep_segment(candidate["segment"])
        return json.dumps(values, ensure_ascii=False)

    def unpack(self, line: str) -> Comparison:
        """Raises BadInput where a segment's file is gone or is no longer what it was."""
        values = json.loads(line)
        for candidate in values["candidates"]:
            if "segment" in candidate:
                candidate["segment"] = self._read_segment(candidate["segment"])
        try:
            return Comparison.model_validate(values)
        except ValidationError as error:
            raise BadInput(f"{self.directory}: comparison {values.get('id')}: {first_problem(error)}") from None

    def _keep_segment(self, values: dict[str, Any]) -> str:
        content = json.dumps(values, sort_keys=True).encode()
        digest = hashlib.sha256(content).hexdigest()[:32]
        path = self._segment_path(digest)
        if not path.exists():
            write_whole(path, content)
        return digest

    def _segment(self, digest: str) -> Segment:
        path = self._segment_path(digest)
        try:
            return Segment.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            raise BadInput(f"{path}: a comparison's segment is gone or damaged: restore the file") from None

    def _segment_path(self, digest: str) -> Path:
        return self.directory / "segments" / f"{digest}.json"

    def _append(self, path: Path, lines: Sequence[str]) -> None:
        if not lines:
            return
        content = "".join(line + "\n" for line in lines).encode()
        try:
            with self._locked(), path.open("ab", buffering=0) as file:
                start = os.fstat(file.fileno()).st_size
                try:
                    written = file.write(content)
                    while written < len(content):
                        written += file.write(content[written:])
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(start)  # a full disk leaves no half of a line
                    raise
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be written: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.directory / "append.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def write_whole(path: Path, content: bytes) -> None:
    """Writes the file whole, or not at all. Raises StoreUnavailable."""
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be written: {error.strerror}") from error


def _whole_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file:line, text), without what is being written just now."""
    if not path.exists():
        return
    *whole, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(whole, start=1):
        if line.strip():
            yield f"{path}:{number}", line.decode(errors="replace")
