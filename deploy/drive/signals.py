"""The one place where a run takes signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_at_once = False  # whether the first signal, too, ends what is going on
_stop = threading.Event()  # of whoever takes signals now


_STOPPED = "stopped before anything was learnt that is not kept"


class StoppedAtOnce(KeyboardInterrupt):
    """By a signal, where there is nothing yet that a checkpoint would keep."""


@contextlib.contextmanager
def nothing_to_keep() -> Iterator[None]:
    """Until its end a signal waits for nothing: no import, no engine and no model that takes long to load. Nor does one
    that came just before."""
    global _at_once
    before, _at_once = _at_once, True
    try:
        if _stop.is_set():
            raise StoppedAtOnce(_STOPPED)
        yield
    except StoppedAtOnce:
        raise
    except KeyboardInterrupt:  # as Ray raises ours anew
        raise StoppedAtOnce(_STOPPED) from None
    finally:
        _at_once = before


@contextlib.contextmanager
def stop_on_signals(directory: Path) -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM sets the event, so that the run ends with a checkpoint, or raises StoppedAtOnce where
    there is `nothing_to_keep`; a second ends it at once. Outside the main thread signals stay with whoever has them."""
    global _stop
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.is_set():
            kept = any(directory.glob("checkpoints/step-*/manifest.json"))
            end = "\x1b[?25h" if sys.stderr.isatty() else ""  # the live view hides the cursor
            os.write(
                2, f"{end}\n{name} again: stopping at once{', the last checkpoint is kept' if kept else ''}\n".encode()
            )
            os._exit(130 if kept else 1)
        stop.set()
        if _at_once:
            raise StoppedAtOnce(_STOPPED)
        os.write(2, f"\n{name}: stopping with a checkpoint; once more stops at once\n".encode())

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    _stop = stop
    try:
        yield stop
    finally:
        _stop = threading.Event()
        for number, handler in before.items():
            signal.signal(number, handler)
