"""What the proofs have in common: the command line that chooses among them, a row for each thing that was to be shown,
and how many were not."""

from __future__ import annotations

import argparse
import datetime
import math
import statistics
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
T_QUANTILE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}  # of Student's distribution at 97.5%, by degrees of freedom
ROLLCALL = (sys.executable, "-m", "rollcall.deploy.cli")


@dataclass(frozen=True)
class Row:
    """`what` was done, what was found, and whether that meets its target."""

    what: str
    text: str
    met: bool

    def __str__(self) -> str:
        return (
            f"| {datetime.date.today().isoformat()} | {self.what} | {self.text} | {'yes' if self.met else '**no**'} |"
        )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95%, of the mean over 2, 3, 5 or 10 seeds."""
    mean = statistics.mean(values)
    half = T_QUANTILE[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def of_seeds(values: Sequence[float]) -> str:
    """Mean and 95% interval over seeds."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f} (one seed)"
    low, high = interval(values)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def rollcall(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ROLLCALL, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def parser(description: str | None, proofs: Collection[str]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--only", nargs="*", choices=list(proofs), help="of these alone")
    made.add_argument("--append", type=Path, metavar="FILE.md", help="also write the rows there")
    return made


def report(rows: Iterable[Row], append: Path | None) -> int:
    """Tells each row as soon as it is there; returns the command's exit code."""
    failures = 0
    for row in rows:
        failures += not row.met
        print(row, flush=True)
        if append is not None:
            with append.open("a") as file:
                file.write(f"{row}\n")
    print(f"{failures} targets missed")
    return 1 if failures else 0
