"""The line of a user's own code in a traceback, which tells more than the lines of the libraries around it."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

_FRAME = re.compile(r'^ *File "(?P<file>.+?)", line (?P<line>\d+), in (?P<name>.+)\n(?: {4,}(?P<code>\S.*)\n?)?', re.M)
_OURS = str(Path(__file__).resolve().parent.parent)
_NOT_THEIRS = ("site-packages", "dist-packages", "<frozen ", "<string>", "<__array_function__")
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})


def user_line(trace: str) -> str:
    """`my_env.py, line 12, in step: self.arm.move()` of a formatted traceback: the innermost line that belongs to
    neither Rollcall nor an installed package. Empty where there is none."""
    for frame in reversed(list(_FRAME.finditer(trace))):
        file = frame["file"]
        if any(part in file for part in _NOT_THEIRS) or file.startswith(_STANDARD) or _is_ours(file):
            continue
        code = f": {frame['code'].strip()}" if frame["code"] else ""
        return f"{file}, line {frame['line']}, in {frame['name']}{code}"
    return ""


def user_line_of(error: BaseException) -> str:
    return user_line("".join(traceback.format_exception(error)))


def _is_ours(file: str) -> bool:
    """Rollcall's own folders; a user's file may lie beside them in a source tree."""
    inside = file.removeprefix(f"{_OURS}/")
    return inside != file and inside.partition("/")[0] in ("actors", "cluster", "deploy", "learners", "reward_service")
