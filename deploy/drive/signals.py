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


@contextlib.contextmanager
def stop_on_signals(directory: Path) -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM sets the event, so that the run ends with a checkpoint; a second ends it at once.
    Outside the main thread signals stay with whoever has them."""
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
        os.write(2, f"\n{name}: stopping with a checkpoint; once more stops at once\n".encode())

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
