"""A command of `rollcall` that ends with the search that began it, whatever ends that: one that goes on begins its
candidates' runs again, and two drivers of one run there must never be."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


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
