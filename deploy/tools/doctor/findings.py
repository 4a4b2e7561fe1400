"""Asks every probe at once, each with a deadline, and puts what they found into lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "note", "problem"]
DEADLINE_S = 10.0
MARKS: Mapping[str, str] = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


@dataclass(frozen=True)
class Finding:
    """What one probe found. note: runs work, and something is slower, smaller or missing that some of them use.
    problem: runs do not work as they are shipped."""

    what: str
    level: Level
    found: str
    means: str = ""


Probe = Callable[[], Finding]


def findings(probes: Mapping[str, Probe], *, deadline_s: float = DEADLINE_S) -> list[Finding]:
    """One for each probe, in their order. A probe that does not answer in time, or fails, is a finding too."""
    found: dict[str, Finding] = {}

    def ask(name: str, probe: Probe) -> None:
        try:
            found[name] = probe()
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            found[name] = Finding(name, "problem", text, "it could not be looked at")

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in probes.items()]
    for thread in threads:
        thread.start()
    until = time.monotonic() + deadline_s
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    late = f"no answer within {deadline_s:g} s"
    return [found.get(name) or Finding(name, "problem", late, "it hangs: a run would, too") for name in probes]


def as_lines(found: Sequence[Finding]) -> list[str]:
    width = max(len(finding.what) for finding in found)
    marks = max(map(len, MARKS.values()))
    lines = []
    for finding in found:
        lines.append(f"{finding.what:<{width}}  {MARKS[finding.level]:<{marks}}  {finding.found}")
        if finding.means:
            lines.append(f"{'':<{width}}  {'':<{marks}}  -> {finding.means}")
    problems = sum(finding.level == "problem" for finding in found)
    lines.append("")
    lines.append(
        "this machine can run every shipped CPU recipe" if not problems else f"{problems} to be fixed: see PROBLEM"
    )
    return lines


def as_json(found: Sequence[Finding]) -> dict[str, Any]:
    ok = not any(finding.level == "problem" for finding in found)
    return {"ok": ok, "findings": [asdict(finding) for finding in found]}
