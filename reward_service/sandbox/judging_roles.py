"""What runs in the sandbox of the tests: it judges, from outside, the code that `solution_roles` serves in a sandbox of
its own. Standard library alone."""

from __future__ import annotations

import ast
import os
import types

from rollcall.reward_service.sandbox import test_source
from rollcall.reward_service.sandbox.given import Given, fresh_module
from rollcall.reward_service.sandbox.judging_end import JudgingEnd
from rollcall.reward_service.sandbox.plain_values import CannotCross
from rollcall.reward_service.sandbox.solution_channel import OtherEndGone

# A test's exit status. That of a process which has just ended means nothing.
PASSED, FAILED, UNSUPPORTED = 77, 1, 3
_MESSAGE_BYTES = 500
_CHANNEL = 3  # the descriptor


def run_test(number: int, tests: list[str], entry_point: str | None, preamble: str) -> int:
    """Passed when the test runs to its end. Its message goes to standard output."""
    module = fresh_module("__main__", "test.py")
    try:
        tree, before = ast.parse(tests[number], "test.py"), ast.parse(preamble, "preamble.py")
        exec(compile(before, "preamble.py", "exec", dont_inherit=True), module.__dict__)
        given = Given("__main__", dict(module.__dict__), "t")
        words = test_source.words(before)
        compiled = compile(test_source.fitted(tree), "test.py", "exec", dont_inherit=True)
    except BaseException as error:
        return _say(error, UNSUPPORTED)
    try:
        end = JudgingEnd(_CHANNEL, given, words)
        if end.loaded:
            os.write(1, str(end.loaded.get("error", "")).encode(errors="replace")[:_MESSAGE_BYTES])
            return FAILED
        _add_names(module, end, tree, before, entry_point)
        module.__dict__.update(test_source.FITTINGS)
    except OtherEndGone:
        return _say_gone()
    except Exception as error:
        return _say(error, FAILED)
    try:
        exec(compiled, module.__dict__)
    except CannotCross as error:
        return _say(error, UNSUPPORTED)
    except OtherEndGone:
        return _say_gone()
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            return FAILED
    except BaseException as error:
        return _say(error, FAILED)
    if end.gone:  # whatever the test has made of that
        return _say_gone()
    if end.assertion is not None:  # the code, which called back, has kept it to itself
        return _say(end.assertion, FAILED)
    return PASSED


def _add_names(
    module: types.ModuleType, end: JudgingEnd, tree: ast.Module, before: ast.Module, entry_point: str | None
) -> None:
    """To the preamble's, what the test uses of the code. The code cannot put itself in the place of a builtin, of what
    the tests import or define, or of a module, unless they call it by that name (`entry_point`)."""
    names = test_source.used(tree, before) - test_source.defined(tree)
    left_to_code = test_source.stubs(before) | ({entry_point} if entry_point else set())
    names = {name for name in names if name not in module.__dict__} | left_to_code
    known = test_source.modules(names - left_to_code, tree, before)
    module.__dict__.update(known)
    makers = test_source.makers(names, end.words, tree, before)
    for name in sorted(names - known.keys()):
        for value in end.named(name, makes=name in makers):
            module.__dict__[name] = value


def _say_gone() -> int:
    os.write(1, b"the code ended its process")
    return FAILED


def _say(error: BaseException, status: int) -> int:
    text = f"{type(error).__name__}: {error}".encode(errors="replace")[:_MESSAGE_BYTES]
    os.write(1, text)
    return status


ROLES = {"test": run_test}
