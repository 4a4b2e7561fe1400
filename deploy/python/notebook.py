"""A run's progress in one cell of a notebook, redrawn in place: a bar, and below it the lines that a log would have."""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable
from html import escape
from io import TextIOBase
from typing import Any, TextIO, cast

from rollcall.deploy.report.recorders import Record

_EVERY_S = 0.5
_KEPT = 12  # lines that stay in view
_STANDING = re.compile(r"(step|env steps?|tokens?) [\d,]")  # a line that takes the place of the one before it


def is_notebook() -> bool:
    """Whether this program is a kernel, of Jupyter, Colab or an editor, which shows what cells display."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class _Lines(TextIOBase):
    """What a console prints, a line at a time."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for line in filter(None, text.splitlines()):
            self._told(line)
        return len(text)


class NotebookCell:
    """A recorder, and in `stream` what a console may print its lines to."""

    def __init__(self) -> None:
        """Raises ImportError: where there is nothing to display with."""
        from IPython.display import display

        show: Any = display  # untyped, where it is there
        self.stream = cast(TextIO, _Lines(self._line))
        self._began = self._drawn = time.monotonic()
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._standing = ""
        self._done = 0
        self._total: int | None = None
        self._handle = show(self, display_id=True)

    def _line(self, line: str) -> None:
        if _STANDING.match(line):
            self._standing = line
        else:
            self._lines.append(line)
        self._draw()

    # As a recorder.

    def on_start(self, info: Record) -> None:
        self._done, self._total = int(info.get("start_step") or 0), info.get("total_learner_steps")
        self._draw()

    def on_step(self, record: Record) -> None:
        self._done = int(record["step"]) + 1
        if time.monotonic() - self._drawn >= _EVERY_S:
            self._draw()

    def on_eval(self, record: Record) -> None: ...

    def on_event(self, kind: str, text: str) -> None: ...

    def close(self, summary: Record) -> None:
        self._draw()

    # As what is shown.

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._handle is not None:
            self._handle.update(self)

    def _text(self) -> str:
        total = f"/{self._total:,}" if self._total else ""
        return f"step {self._done:,}{total}, {time.monotonic() - self._began:.0f} s"

    def __repr__(self) -> str:
        return "\n".join([self._text(), *filter(None, [self._standing]), *self._lines])

    def _repr_html_(self) -> str:
        most = f' max="{self._total}"' if self._total else ""
        value = f' value="{self._done}"' if self._total or not self._done else ""
        lines = "\n".join(escape(line) for line in filter(None, [self._standing, *self._lines]))
        return (
            f'<div><progress{most}{value} style="width: 20em"></progress> {escape(self._text())}'
            f'<pre style="margin: 0.5em 0; white-space: pre-wrap">{lines}</pre></div>'
        )
