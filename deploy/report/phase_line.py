"""The line that a start stands on: which phase is under way and for how long, redrawn in place, and what each took once
it is over. Draws from a thread of its own, by writing alone: nothing here is waited for."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from rollcall.deploy.report.progress import duration, one_line
from rollcall.deploy.report.recorders import Recorder

PHASE = "phase"  # an event for screens alone: a phase of the start begins; without text: it is over
REDRAW_S = 0.5
WORTH_A_LINE_S = 1.0  # what a phase lasts of which a line stays
_CLEAR = "\r\x1b[2K"  # the whole line; the cursor stands at its beginning


def redraws(stream: IO[str]) -> bool:
    """Whether it is a terminal that can be told to draw a line again: `TERM=dumb` says that one cannot."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def phase(recorder: Recorder, what: str) -> Iterator[None]:
    """A phase of a start, told to whoever looks on."""
    try:
        recorder.on_event(PHASE, what)
        yield
    finally:
        recorder.on_event(PHASE, "")


@contextmanager
def before_the_run(what: str, stream: IO[str] | None = None) -> Iterator[None]:
    """The same before a run has anybody to tell, on standard error where that is a terminal, leaving no line. Elsewhere
    nothing is said: whoever reads that stream looks for what went wrong."""
    out = stream or sys.stderr
    if not redraws(out):
        yield
        return
    line = PhaseLine(out)
    try:  # also around the beginning: Ctrl-C may come at any time
        line.begin(what)
        yield
    finally:
        line.end(leave=False)


def phase_text(what: str, began: float) -> str:
    """A phase of a start in a line of its own. `began`: the start did, by the monotonic clock."""
    return f"starting: {what} ({duration(time.monotonic() - began)})"


class PhaseLine:
    """One line at the bottom of a terminal. Whoever prints while it is drawn does so `aside`."""

    def __init__(self, stream: IO[str], *, every_s: float = REDRAW_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._what = self._newest = ""
        self._began = 0.0
        self._drawing = threading.Lock()
        self._over: threading.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_on(self) -> bool:
        return self._over is not None

    def begin(self, what: str) -> None:
        """The phase before it, if there is one, is over."""
        self.end()
        self._what, self._newest, self._began = what, "", time.monotonic()
        self._over = threading.Event()
        self._draw()
        self._thread = threading.Thread(target=self._redraw, args=(self._over,), name="phase", daemon=True)
        self._thread.start()

    def tell(self, news: str) -> None:
        """What has just happened in the phase; the newest stands beside it."""
        self._newest = one_line(news)
        self._draw()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the line off while something else is printed; it is there again at its next turn."""
        with self._drawing:
            if self.is_on:
                self._write(_CLEAR)
            yield

    def end(self, *, leave: bool = True) -> None:
        """Leaves a line of the phase, if it was worth one."""
        if self._over is None:
            return
        self._over.set()
        if self._thread is not None and self._thread.ident is not None:  # Ctrl-C may have met it before it was started
            self._thread.join()
        self._over = self._thread = None
        took = time.monotonic() - self._began
        self._write(_CLEAR + (f"{self._what}: {duration(took)}\n" if leave and took >= WORTH_A_LINE_S else ""))

    def _redraw(self, over: threading.Event) -> None:
        while not over.wait(self._every_s):
            self._draw()

    def _draw(self) -> None:
        text = f"starting: {self._what} {duration(time.monotonic() - self._began)}"
        with_news = f"{text}   {self._newest}" if self._newest else text
        room = _columns(self._stream) - 1
        with self._drawing:
            self._write(f"{_CLEAR}{(with_news if len(with_news) <= room else text)[:room]}")

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"  # a terminal in ASCII must not end a start
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


def _columns(out: IO[str]) -> int:
    try:
        return os.get_terminal_size(out.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
