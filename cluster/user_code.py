"""What an exception says when it came out of a user's own code: one line that names the place in that code, and the
traceback below it. Must never know what the code was for."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

_ROOT = Path(__file__).resolve().parents[1]
_OURS = tuple(str(_ROOT / part) + "/" for part in ("actors", "cluster", "deploy", "learners", "reward_service"))
_LIBRARIES = (*(sysconfig.get_path(name) + "/" for name in ("stdlib", "purelib", "platlib")), "<frozen ")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)
_LONGEST_TEXT = 500  # characters of the exception's own words


def described(error: BaseException, trace: str = "") -> str:
    """`KeyError: 'x' (/home/me/mine.py, line 7, in score)`, and the traceback's lines below it. The place is the last
    one that is neither Rollcall's nor a library's. `trace`: the traceback as text, of an exception that came from
    another process without it."""
    trace = trace or _trace_of(error)
    return f"{one_line(error)}{_place_in(trace)}\n{trace.rstrip()}"


def one_line(error: BaseException) -> str:
    """`KeyError: 'x'`."""
    name, text = type(error).__name__, " ".join(str(error).split())
    return f"{name}: {text[:_LONGEST_TEXT]}" if text else name


def _place_in(trace: str) -> str:
    frames = [frame for frame in _FRAME.finditer(trace) if not frame["file"].startswith(_OURS)]
    own = [frame for frame in frames if not frame["file"].startswith(_LIBRARIES)]
    return " ({file}, line {line}, in {function})".format_map(own[-1].groupdict()) if own else ""


def _trace_of(error: BaseException) -> str:
    """Without the frames of ours that called the user's code."""
    inner: TracebackType | None = error.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_OURS):
        inner = inner.tb_next
    return "".join(traceback.format_exception(type(error), error, inner or error.__traceback__))
