"""A file of records, one of each row of a task: a line each, written as soon as it is made. Must never know what they
say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rollcall.cluster.books.log_file import cut_torn_line
from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import append_whole, once_there_is_room
from rollcall.cluster.inputs.json_lines import parse_object


class OfRow(Protocol):
    """A record."""

    @property
    def row(self) -> int: ...

    def line(self) -> str: ...


Item = TypeVar("Item", bound=OfRow)


class RowFile(Generic[Item]):
    """Each row once. A line that a killed process left half written is taken away; what stands is never written
    again."""

    def __init__(self, path: Path, of: Callable[[Mapping[str, Any]], Item], *, remedy: str) -> None:
        """`of` raises TypeError or KeyError where a line is no record; `remedy`: what becomes of a row without one.

        Raises:
          BadInput: naming the line that is no record, or the second one of a row.
        """
        self.path = path
        self._of, self._remedy = of, remedy
        self._places: dict[int, int] = {}  # row -> where its line begins
        cut_torn_line(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._find_places()
        except BaseException:
            os.close(self._file)
            raise

    @property
    def rows(self) -> frozenset[int]:
        return frozenset(self._places)

    def add(self, item: Item) -> None:
        """Raises OSError: where the disk does not take it within the patience that files have."""
        assert item.row not in self._places, f"row {item.row} a second time"
        content = item.line().encode(errors="replace")
        once_there_is_room(lambda: append_whole(self._file, content), self.path.parent)
        self._places[item.row] = os.fstat(self._file).st_size - len(content)

    def read(self, rows: Sequence[int] | None = None) -> Iterator[Item]:
        """In the order of the rows (of those that are named, and there), whenever each was made."""
        wanted = self._places.keys() if rows is None else self._places.keys() & set(rows)
        with self.path.open("rb") as file:
            for row in sorted(wanted):
                file.seek(self._places[row])
                yield self._of(json.loads(file.readline()))

    def close(self) -> None:
        with suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def _find_places(self) -> None:
        begin = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = self._of(parse_object(line.decode())).row
                except (ValueError, TypeError, KeyError) as error:
                    raise self._damaged(number, str(error)) from None
                if row in self._places:
                    raise self._damaged(number, f"row {row} has a line already")
                self._places[row] = begin
                begin += len(line)

    def _damaged(self, number: int, why: str) -> BadInput:
        return BadInput(f"{self.path}:{number}: {why}; remove the line: {self._remedy}")
