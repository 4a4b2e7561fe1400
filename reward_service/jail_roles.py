"""What a process in the sandbox does: run a program, serve the code under test, or run a test against it. Standard
library alone; must never know how it is contained."""

from __future__ import annotations

import ast
import json
import os
import sys
import threading
import types

from rollcall.reward_service.plain_values import CannotCross
from rollcall.reward_service.solution_channel import OtherEndGone, SolutionEnd
from rollcall.reward_service.solution_proxy import JudgingEnd

PASSED, FAILED, UNSUPPORTED = 0, 1, 3  # a test's exit status
_MESSAGE_BYTES = 500


def run_program(source: str) -> int:
    """As `python program.py` would: standard input and output are the process's."""
    module = _module("__main__")
    status = 0
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        status = 1
    sys.stdout.flush()
    return status


def serve_solution(source: str, preamble: str, channel: int) -> int:
    """Runs the code once and then answers a test's calls until the test is over."""
    module = _module("solution")
    end = SolutionEnd(channel, module)
    loaded = {}
    try:
        for name, text in (("preamble.py", preamble), ("solution.py", source)):
            exec(compile(text, name, "exec"), module.__dict__)
    except BaseException as error:  # sys.exit() too: whatever ends it, the code has not loaded
        loaded = {"error": f"{type(error).__name__}: {error}"[:_MESSAGE_BYTES]}
    try:
        end.channel.send(loaded)
        end.channel.serve()
    except OtherEndGone:
        pass
    return 0


def run_test(source: str, entry_point: str | None, channel: int) -> int:
    """Passed when the test runs to its end. Its message goes to standard output."""
    try:
        tree = ast.parse(source, "test.py")
        compiled = compile(tree, "test.py", "exec")
    except (SyntaxError, ValueError) as error:
        return _say(1, error, UNSUPPORTED)
    try:
        end = JudgingEnd(channel)
        if end.loaded:
            os.write(1, str(end.loaded.get("error", "")).encode(errors="replace")[:_MESSAGE_BYTES])
            return FAILED
        module = _module("__main__")
        module.__dict__.update(end.names(tree, entry_point))
        exec(compiled, module.__dict__)
    except CannotCross as error:
        return _say(1, error, UNSUPPORTED)
    except OtherEndGone:
        os.write(1, b"the code ended its process")
        return FAILED
    except SystemExit as leaving:
        return PASSED if leaving.code in (None, 0) else FAILED
    except BaseException as error:
        return _say(1, error, FAILED)
    return PASSED


def report_reach(targets: dict[str, str | int]) -> int:
    """For the probe: tries what the sandbox must prevent, and prints what it did prevent."""
    prevented = {}
    for name, attempt in _ATTEMPTS.items():
        try:
            attempt(targets)
            prevented[name] = False
        except OSError:
            prevented[name] = True
    print(json.dumps(prevented), flush=True)
    return 0


def _read_outside(targets: dict[str, str | int]) -> None:
    with open(str(targets["file"])) as file:
        file.read()


def _write_outside(targets: dict[str, str | int]) -> None:
    with open(f"{targets['folder']}/written", "w") as file:
        file.write("x")


def _read_parent(targets: dict[str, str | int]) -> None:
    with open(f"/proc/{targets['pid']}/environ", "rb") as file:
        file.read()


def _signal_parent(targets: dict[str, str | int]) -> None:
    if os.getppid() == 1:
        raise ProcessLookupError("a PID namespace of its own: the service has no number in it")
    os.kill(int(targets["pid"]), 0)


def _connect(targets: dict[str, str | int]) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", int(targets["port"])), timeout=2):
        pass


_ATTEMPTS = {
    "reading files": _read_outside,
    "writing files": _write_outside,
    "the service's environment": _read_parent,
    "signals to the service": _signal_parent,
    "the network": _connect,
}


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module


def _say(descriptor: int, error: BaseException, status: int = FAILED) -> int:
    text = f"{type(error).__name__}: {error}".encode(errors="replace")[:_MESSAGE_BYTES]
    os.write(descriptor, text)
    return status
