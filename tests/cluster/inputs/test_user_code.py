"""An exception out of a user's code, in one line that names the place in that code: not ours, and not a library's."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

from rollcall.cluster.inputs.import_path import import_object
from rollcall.cluster.inputs.user_code import described, user_line, user_line_of
from tests import ROOT


def raised(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it raised nothing")


def test_the_place_is_the_last_line_that_is_neither_a_librarys_nor_ours() -> None:
    def in_a_library() -> None:
        json.loads("{")

    def in_ours() -> None:
        import_object("x")

    for call, kind in ((in_a_library, "JSONDecodeError: Expecting"), (in_ours, "BadInput: 'x' is no import path")):
        first, *trace = described(raised(call)).splitlines()
        assert first.startswith(kind)
        assert first.endswith(f"({__file__}, line {call.__code__.co_firstlineno + 1}, in {call.__name__})")
        assert trace[0] == "Traceback (most recent call last):"


def test_of_another_process_the_traceback_is_text_and_says_as_much() -> None:
    trace = 'ray::A.f()\n  File "/home/me/mine.py", line 7, in step\n    x()\n  File "/home/me/mine.py", line 3, in x\n'
    first, *rest = described(KeyError("a\nb"), trace).splitlines()
    assert first == "KeyError: 'a\\nb' (/home/me/mine.py, line 3, in x)"
    assert "\n".join(rest) == trace.rstrip()


def test_an_exception_without_a_users_line_names_none() -> None:
    error = raised(lambda: statistics.mean([]))
    error.__traceback__ = None
    assert described(error).splitlines()[0] == "StatisticsError: mean requires at least one data point"


def test_the_innermost_line_that_is_no_librarys_is_the_users() -> None:
    error = raised(lambda: json.loads("{"))
    assert user_line_of(error).startswith(f"{__file__}, line ")
    assert user_line_of(error).endswith('in <lambda>: error = raised(lambda: json.loads("{"))')


def test_a_traceback_from_another_process_is_read_as_text_and_one_without_a_users_line_gives_none() -> None:
    ours = ROOT / "actors" / "envs" / "local_group.py"
    trace = 'Traceback (most recent call last):\n  File "/home/me/arm.py", line 12, in step\n    self.arm.move()\n'
    trace += '  File "/venv/lib/python3.11/site-packages/sim/arm.py", line 3, in move\n    raise ValueError("far")\n'
    assert user_line(trace + "ValueError: far\n") == "/home/me/arm.py, line 12, in step: self.arm.move()"
    assert user_line(f'  File "{ours}", line 1, in step\n    env.step(action)\nValueError: far\n') == ""
    assert user_line("ValueError: far") == ""
