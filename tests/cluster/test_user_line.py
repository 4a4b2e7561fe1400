"""Of a traceback through libraries, the line that its reader wrote."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path

from rollcall.cluster.inputs.user_code import user_line, user_line_of


def _raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it raises")


def test_the_innermost_line_that_is_no_librarys_is_the_users() -> None:
    error = _raised(lambda: json.loads("{"))
    assert "json/decoder.py" in "".join(traceback.format_exception(error))
    assert user_line_of(error).startswith(f"{__file__}, line ")
    assert user_line_of(error).endswith('in <lambda>: error = _raised(lambda: json.loads("{"))')


def test_a_traceback_from_another_process_is_read_as_text_and_one_without_a_users_line_gives_none() -> None:
    ours = str(Path(__file__).resolve().parents[2] / "actors" / "local_group.py")
    trace = 'Traceback (most recent call last):\n  File "/home/me/arm.py", line 12, in step\n    self.arm.move()\n'
    trace += '  File "/venv/lib/python3.11/site-packages/sim/arm.py", line 3, in move\n    raise ValueError("far")\n'
    assert user_line(trace + "ValueError: far\n") == "/home/me/arm.py, line 12, in step: self.arm.move()"
    assert user_line(f'  File "{ours}", line 1, in step\n    env.step(action)\nValueError: far\n') == ""
    assert user_line("ValueError: far") == ""
