"""Says on a terminal what a start waits for, and for how long. Elsewhere nothing is drawn: there the line that tells
the end of a phase has to do."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

PATIENCE_S = 2.0  # of whoever looks on
_CLEAR = "\x1b[2K"  # the whole line; the cursor stays


@contextmanager
def waiting(what: str, stream: TextIO | None = None, *, after_s: float = PATIENCE_S) -> Iterator[None]:
    """`what`, and the seconds, on a line that is redrawn until it is over. The cursor stands at its beginning, so that
    whoever prints meanwhile prints over it."""
    out = stream or sys.stderr
    if not out.isatty():
        yield
        return
    over, began = threading.Event(), time.monotonic()
    thread = threading.Thread(target=_draw, args=(what, out, over, began, after_s), name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _draw(what: str, out: TextIO, over: threading.Event, began: float, after_s: float) -> None:
    patience_s, drawn = after_s, False
    while not over.wait(patience_s):
        text = f"waiting for {what}: {time.monotonic() - began:.0f} s"
        out.write(f"{_CLEAR}{text[: _columns(out) - 1]}\r")
        out.flush()
        patience_s, drawn = 0.5, True
    if drawn:
        out.write(_CLEAR)
        out.flush()


def _columns(out: TextIO) -> int:
    try:
        return os.get_terminal_size(out.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
