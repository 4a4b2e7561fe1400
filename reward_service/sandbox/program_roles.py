"""What runs in the sandbox of a program, and of the probe. Standard library alone."""

from __future__ import annotations

import json
import os
import sys
import threading
import types


def program(_: int, code: str) -> int:
    """As `python program.py` would: standard input and output are the process's."""
    sys.argv = ["program.py"]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    status = 0
    try:
        exec(compile(code, "program.py", "exec"), module.__dict__)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        status = 1
    sys.stdout.flush()
    return status


def report_reach(_: int, targets: dict[str, str | int]) -> int:
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

ROLES = {"program": program, "reach": report_reach}
