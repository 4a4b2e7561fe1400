"""What runs in the sandboxes of a solution and of its tests: the one serves the code under test, the other judges it
from outside. Standard library alone."""

from __future__ import annotations

import ast
import os
import sys
import types

from rollcall.reward_service.sandbox.plain_values import CannotCross
from rollcall.reward_service.sandbox.solution_channel import OtherEndGone, SolutionEnd
from rollcall.reward_service.sandbox.solution_proxy import JudgingEnd

PASSED, FAILED, UNSUPPORTED = 0, 1, 3  # a test's exit status
_MESSAGE_BYTES = 500
_CHANNEL = 3  # the descriptor


def serve_solution(_: int, code: str, preamble: str) -> int:
    """Runs the code once and then answers a test's calls until the test is over."""
    module = _module("solution")
    end = SolutionEnd(_CHANNEL, module)
    loaded = {}
    try:
        for name, text in (("preamble.py", preamble), ("solution.py", code)):
            exec(compile(text, name, "exec"), module.__dict__)
    except BaseException as error:  # sys.exit() too: whatever ends it, the code has not loaded
        loaded = {"error": f"{type(error).__name__}: {error}"[:_MESSAGE_BYTES]}
    try:
        end.channel.send(loaded)
        end.channel.serve()
    except OtherEndGone:
        pass
    return 0


def run_test(number: int, tests: list[str], entry_point: str | None) -> int:
    """Passed when the test runs to its end. Its message goes to standard output."""
    try:
        tree = ast.parse(tests[number], "test.py")
        compiled = compile(tree, "test.py", "exec")
    except (SyntaxError, ValueError) as error:
        return _say(error, UNSUPPORTED)
    try:
        end = JudgingEnd(_CHANNEL)
        if end.loaded:
            os.write(1, str(end.loaded.get("error", "")).encode(errors="replace")[:_MESSAGE_BYTES])
            return FAILED
        module = _module("__main__")
        module.__dict__.update(end.names(tree, entry_point))
        exec(compiled, module.__dict__)
    except CannotCross as error:
        return _say(error, UNSUPPORTED)
    except OtherEndGone:
        os.write(1, b"the code ended its process")
        return FAILED
    except SystemExit as leaving:
        return PASSED if leaving.code in (None, 0) else FAILED
    except BaseException as error:
        return _say(error, FAILED)
    return PASSED


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module


def _say(error: BaseException, status: int) -> int:
    text = f"{type(error).__name__}: {error}".encode(errors="replace")[:_MESSAGE_BYTES]
    os.write(1, text)
    return status


ROLES = {"solution": serve_solution, "test": run_test}
