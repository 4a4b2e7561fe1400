"""A command of `rollcall` that ends with whoever began it (a search for a reward, a sweep), whatever ends that: one
that goes on begins its runs again, and two drivers of one run there must never be."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def child_command(*arguments: str) -> list[str]:
    """`rollcall ARGUMENTS` in a process that ends with the thread that starts it."""
    return [sys.executable, "-m", __name__, str(os.getpid()), *arguments]


def main() -> None:
    """argv: the parent's pid, and the command line of `rollcall`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return
    sys.argv = ["rollcall", *sys.argv[2:]]
    runpy.run_module("rollcall.deploy.cli", run_name="__main__")


if __name__ == "__main__":
    main()
