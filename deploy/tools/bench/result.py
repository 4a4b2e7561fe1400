"""What the benchmarks have in common: their results, each one JSON object in the same terms or a table of it, and the
whole run that is measured."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rollcall.deploy.drive.lifecycle import drive_alone
from rollcall.deploy.report.recorders import JsonLines
from rollcall.deploy.report.run_lines import read_jsonl


def say(text: str) -> None:
    """What is under way, beside the result."""
    print(text, file=sys.stderr, flush=True)


def tell(
    result: Mapping[str, Any], table: Callable[[Mapping[str, Any]], Sequence[str]], args: argparse.Namespace
) -> int:
    """Prints the result as `args` ask for it; returns the command's exit code."""
    print(json.dumps(result) if args.json else "\n".join(table(result)))
    return 0


def compared(bound: float, wholes: Sequence[float], peers: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The terms of a benchmark that measures whole runs, of which the median counts. `peers`: name -> speeds; the first
    is also told by itself."""
    achieved = statistics.median(wholes)
    speeds = {name: statistics.median(measured) for name, measured in peers.items()}
    ratios = {name: round(achieved / speed, 2) for name, speed in speeds.items()}
    first = next(iter(peers), "")
    return {
        "bound": round(bound),
        "achieved": round(achieved),
        "ratio_to_bound": round(achieved / bound, 3),
        "peer": first or None,
        "peer_achieved": round(speeds[first]) if first else None,
        "ratio_to_peer": ratios.get(first),
        "peers": {name: {"achieved": round(speeds[name]), "ratio": ratios[name]} for name in peers},
    }


def bound_line(result: Mapping[str, Any], meaning: str) -> str:
    return f"bound       {result['bound']:8,d} {result['unit']} = {meaning}"


def achieved_line(result: Mapping[str, Any], *, digits: int = 2) -> str:
    share = f"{result['ratio_to_bound']:.{digits}f} of the bound"
    return f"achieved    {result['achieved']:8,d} {result['unit']}: {share}"


def last_lines(result: Mapping[str, Any]) -> list[str]:
    """What limits it, and the peers if there are any."""
    lines = [f"limiter     {result['limiter']}"]
    for name, peer in result["peers"].items():
        speed = f"{name:<11} {peer['achieved']:8,d} {result['unit']}"
        lines.append(f"{speed}: Rollcall is {peer['ratio']:.2f} times as fast")
    return lines


def whole_run(config: Any, directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one complete run, with its books, its parameter server and its metrics."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    drive_alone(config, directory, JsonLines(directory))
    return read_jsonl(directory / "metrics.jsonl")
