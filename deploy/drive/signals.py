"""The one place where a run takes signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from rollcall.cluster.files import no_more_waiting

_at_once = False  # whether the first signal, too, ends what is going on
_stop = threading.Event()  # of whoever takes signals now
_ending = threading.Event()  # what there is of the run is being taken down, since there is nothing to keep

_STOPPED = "stopped before anything was learnt that is not kept"
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last one: the terminal was closed
LOOK_S = 0.2
AT_ONCE_S = 2.0  # how long a stop at once may take, to take down what was built up


class StoppedAtOnce(KeyboardInterrupt):
    """By a signal, where there is nothing yet that a checkpoint would keep."""


@contextlib.contextmanager
def nothing_to_keep() -> Iterator[None]:
    """Until its end a signal waits for nothing: no import, no engine and no model that takes long to load. Nor does one
    that came just before. What does not let go by then ends with this process, AT_ONCE_S later."""
    global _at_once
    before, _at_once = _at_once, True
    try:
        if _stop.is_set():
            _ending.set()
            raise StoppedAtOnce(_STOPPED)
        yield
    except StoppedAtOnce:
        raise
    except (KeyboardInterrupt, SystemExit) as error:  # as Ray raises ours anew, or ends us for a SIGTERM
        if isinstance(error, SystemExit) and not _stop.is_set():
            raise
        raise StoppedAtOnce(_STOPPED) from None
    finally:
        _at_once = before


@contextlib.contextmanager
def stop_on_signals(directory: Path, *, shown: Callable[[str], bool] = lambda text: False) -> Iterator[threading.Event]:
    """The first SIGINT, SIGTERM or SIGHUP sets the event, so that the run ends with a checkpoint, or raises
    StoppedAtOnce where there is `nothing_to_keep`; a second ends it at once. Outside the main thread signals stay with
    whoever has them, and under nohup SIGHUP with nobody. `shown`: of who draws over what is written on the terminal,
    shows a line itself; whether it does. Called wherever the signal meets the main thread."""
    global _stop
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.is_set():
            _say(f"{name} again: stopping at once{', the last checkpoint is kept' if _kept(directory) else ''}")
            os._exit(_exit_code(directory))
        stop.set()
        no_more_waiting.set()
        if _at_once:
            raise StoppedAtOnce(_STOPPED)
        text = f"{name}: stopping with a checkpoint; once more stops at once"
        if not shown(text):
            _say(text)

    before = {number: signal.getsignal(number) for number in _NUMBERS}
    for number in _NUMBERS:
        if number is not signal.SIGHUP or before[number] is not signal.SIG_IGN:
            signal.signal(number, handle)
    _stop = stop
    _ending.clear()
    no_more_waiting.clear()
    try:
        with _heard_at_once(directory):
            yield stop
    finally:
        _stop = threading.Event()
        no_more_waiting.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _heard_at_once(directory: Path) -> Iterator[None]:
    """A signal's handler waits until the main thread is back from whatever library it is in: for minutes, where that
    loads an engine. Where there is nothing to keep, another thread hears of the signal, and ends the process."""
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)

    def listen() -> None:
        deadline = float("inf")
        while not over.is_set():
            heard = select.select([ears], [], [], LOOK_S)[0]
            numbers = os.read(ears, 64) if heard else b""
            if _ending.is_set() or (_at_once and any(number in numbers for number in _NUMBERS)):
                deadline = min(deadline, time.monotonic() + AT_ONCE_S)
            if time.monotonic() > deadline and not over.is_set():
                _say(f"rollcall: error: {_STOPPED}")
                os._exit(_exit_code(directory))

    over = threading.Event()
    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.write(mouth, b"\0")
        listener.join()
        os.close(ears)
        os.close(mouth)


def _kept(directory: Path) -> bool:
    return any(directory.glob("checkpoints/step-*/manifest.json"))


def _exit_code(directory: Path) -> int:
    return 130 if _kept(directory) else 1


def _say(text: str) -> None:
    """From wherever a signal has met us, to a terminal that may be gone."""
    with contextlib.suppress(OSError):
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # the live view hides the cursor
        os.write(2, f"{shown}\n{text}\n".encode())
