"""What a pod does before Kubernetes ends it: where a run's driver is, asks it to stop and waits for its last
checkpoint; elsewhere waits until the run no longer needs this node. Needs the standard library alone."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

POLL_S = 0.5


def main(arguments: Sequence[str] | None = None, proc: Path = Path("/proc")) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-most", type=float, default=60.0, metavar="SECONDS", help="shorter than the grace period")
    parser.add_argument("--at-least", type=float, default=0.0, metavar="SECONDS", help="for a head that others need")
    args = parser.parse_args(arguments)
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        print("this is no pod of Kubernetes: whose runs these are is not known, and none is stopped", file=sys.stderr)
        return 2
    began = time.monotonic()
    for pid in drivers(proc):
        print(f"asking the run of process {pid} to stop", flush=True)
        os.kill(pid, signal.SIGTERM)
    while (waited := time.monotonic() - began) < args.at_most:
        if waited >= args.at_least and not busy(proc):
            return 0
        time.sleep(POLL_S)
    return 0


def drivers(proc: Path) -> list[int]:
    """Processes that are `rollcall train` or `rollcall resume`, not the shells and supervisors around them."""
    return [pid for pid, words in _processes(proc) if _is_driver(words)]


def busy(proc: Path) -> bool:
    """Whether a driver runs here, or a Ray worker that does something for one: an idle one is called ray::IDLE."""
    return any(
        _is_driver(words)
        or (words[0].startswith("ray::") and not words[0].startswith(("ray::IDLE", "ray::JobSupervisor")))
        for _, words in _processes(proc)
    )


def _is_driver(words: list[str]) -> bool:
    names = [os.path.basename(word) for word in words]
    return "rollcall" in names[:2] and any(name in ("train", "resume") for name in names[1:3])


def _processes(proc: Path) -> Iterator[tuple[int, list[str]]]:
    for folder in proc.iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue  # it has ended just now
        if words != [""] and state != "Z":
            yield int(folder.name), words


if __name__ == "__main__":
    sys.exit(main())
