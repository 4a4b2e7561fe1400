"""What runs in the sandbox of the code under test: it serves the tests, which run in another. Standard library
alone."""

from __future__ import annotations
import __future__

from rollcall.reward_service.sandbox.given import Given, fresh_module
from rollcall.reward_service.sandbox.solution_channel import OtherEndGone
from rollcall.reward_service.sandbox.solution_end import SolutionEnd

_MESSAGE_BYTES = 500
_CHANNEL = 3  # the descriptor
_FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


def serve_solution(_: int, code: str, preamble: str) -> int:
    """Runs the code once and then answers a test's calls until the test is over."""
    module = fresh_module("solution", "solution.py")
    loaded = {}
    given = Given("solution", {}, "c")
    try:
        before = compile(preamble, "preamble.py", "exec", dont_inherit=True)
        exec(before, module.__dict__)
        given = Given("solution", dict(module.__dict__), "c")
        flags = before.co_flags & _FUTURE
        exec(compile(code, "solution.py", "exec", flags, dont_inherit=True), module.__dict__)
    except BaseException as error:  # sys.exit() too: whatever ends it, the code has not loaded
        loaded = {"error": f"{type(error).__name__}: {error}"[:_MESSAGE_BYTES]}
    end = SolutionEnd(_CHANNEL, module, given)
    try:
        end.channel.send(loaded)
        end.channel.serve()
    except OtherEndGone:
        pass
    return 0


ROLES = {"solution": serve_solution}
