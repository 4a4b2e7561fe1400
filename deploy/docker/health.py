"""Whether what this container was started for works: asks every part of Rollcall and Ray that runs in it. Exit code 0
if each of them answers, 1 with the reason otherwise. Needs the standard library alone, and must never need a token."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

TIMEOUT_S = 3.0
RAY_AGENT = "http://127.0.0.1:52365/api/healthz"  # --dashboard-agent-listen-port's default; open without a token
REWARD_SERVICE = "http://127.0.0.1:8470/healthz"
RAYLET, SERVICE, RUN = "Ray node", "reward service", "run"


def main(proc: Path = Path("/proc")) -> int:
    parts = set(running(command_lines(proc)))
    if not parts:
        print("neither a Ray node, nor the reward service, nor a run is running here")
        return 1
    problems = [problem for part in sorted(parts) if (problem := ask(part)) is not None]
    print("\n".join(problems) or f"{', '.join(sorted(parts))}: ok")
    return 1 if problems else 0


def running(commands: Iterable[list[str]]) -> Iterator[str]:
    """Which parts the command lines belong to."""
    for command in commands:
        names = [os.path.basename(word) for word in command]
        if names[0] == "raylet":
            yield RAYLET
        elif "rollcall" in names[:3]:
            words = names[names.index("rollcall") + 1 :]
            if words[:2] == ["reward", "serve"]:
                yield SERVICE
            elif words[:1] in (["train"], ["resume"]):
                yield RUN


def ask(part: str) -> str | None:
    """What is wrong with it; None: nothing. A run that is there is looked after by its own watchdog."""
    address = {RAYLET: RAY_AGENT, SERVICE: os.environ.get("ROLLCALL_HEALTH_URL", REWARD_SERVICE)}.get(part)
    if address is None:
        return None
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            answer.read()
    except (OSError, ValueError) as error:
        return f"{part}: {address} does not answer as it should: {error}"
    return None


def command_lines(proc: Path) -> Iterator[list[str]]:
    """Of all living processes that we may see."""
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except OSError:
            continue  # it has ended just now
        if words != [""]:
            yield words


if __name__ == "__main__":
    sys.exit(main())
