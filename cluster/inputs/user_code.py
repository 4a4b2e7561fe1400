"""What an exception says when it came out of a user's own code: the place in that code, in one line, and the traceback.
Must never know what the code was for."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

_FRAME = re.compile(
    r'^ *File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>.+)\n?(?: {4,}(?P<code>\S.*)\n?)?', re.M
)
_ROOT = Path(__file__).resolve().parents[2]  # a user's file may lie beside our folders in a source tree
_OURS = tuple(f"{_ROOT / part}/" for part in ("actors", "cluster", "deploy", "learners", "reward_service"))
_STANDARD = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib")})
_INSTALLED = ("site-packages", "dist-packages", "<frozen ", "<string>", "<__array_function__")
_LONGEST_TEXT = 500  # characters of the exception's own words


def described(error: BaseException, trace: str = "") -> str:
    """`KeyError: 'x' (/home/me/mine.py, line 7, in score)`, and the traceback's lines below it. `trace`: the traceback
    as text, of an exception that came from another process without it."""
    trace = trace or _trace_of(error)
    place = _place_in(trace)
    where = f" ({place[0]})" if place else ""
    return f"{one_line(error)}{where}\n{trace.rstrip()}"


def one_line(error: BaseException) -> str:
    """`KeyError: 'x'`."""
    name, text = type(error).__name__, " ".join(str(error).split())
    return f"{name}: {text[:_LONGEST_TEXT]}" if text else name


def user_line(trace: str) -> str:
    """`/home/me/env.py, line 12, in step: self.arm.move()` of a traceback as text: the innermost line that belongs to
    neither Rollcall nor an installed package. Empty where there is none."""
    place = _place_in(trace)
    return ": ".join(filter(None, place)) if place else ""


def user_line_of(error: BaseException) -> str:
    return user_line("".join(traceback.format_exception(error)))


def _place_in(trace: str) -> tuple[str, str] | None:
    """(file, line and function; the code there, if it is known)"""
    for frame in reversed(list(_FRAME.finditer(trace))):
        file = frame["file"]
        if not file.startswith((*_OURS, *_STANDARD)) and not any(part in file for part in _INSTALLED):
            return f"{file}, line {frame['line']}, in {frame['name']}", (frame["code"] or "").strip()
    return None


def _trace_of(error: BaseException) -> str:
    """Without the frames of ours that called the user's code."""
    inner: TracebackType | None = error.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_OURS):
        inner = inner.tb_next
    return "".join(traceback.format_exception(type(error), error, inner or error.__traceback__))
