"""`rollcall runs`: one line a run, the newest first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.overview.run_reading import RunReading, read_run_directory, runs_below
from rollcall.deploy.report.progress import duration, number, percent

STATUSES = ("completed", "stopped", "failed", "running", "starting", "cut off")
_HEADINGS = ("run", "recipe", "method", "status", "score", "steps", "experience", "began", "machine")


def read_runs(root: Path, directories: Iterable[Path] = ()) -> list[RunReading]:
    """The given runs, or all below `root`, the newest first. One that cannot be read is left out of a whole folder.

    Raises:
      BadInput: when a given one cannot be read, or the folder is not there.
    """
    given = list(directories)
    if given:
        found = [read_run_directory(directory) for directory in given]
    else:
        if not root.is_dir():
            raise BadInput(f"{root}/ is not there yet: runs are made from where you stand, or in $ROLLCALL_RUNS")
        found = [run for directory in runs_below(root) if (run := _readable(directory)) is not None]
    return sorted(found, key=lambda run: -(run.began_unix_s or 0.0))


def as_json(run: RunReading) -> dict[str, Any]:
    """One run, with numbers as numbers."""
    return {
        "run": run.name,
        "directory": str(run.directory),
        "recipe": run.recipe,
        "method": run.method,
        "seed": run.seed,
        "status": run.status,
        "resumable": run.resumable,
        "score": run.score,
        "score_of": run.score_of,
        "score_std": run.evaluation.get("std"),
        "score_unit": run.evaluation.get("unit") or ("return" if run.score is not None else None),
        "learner_steps": run.learner_steps,
        run.counts.key: run.experience,
        "began_unix_s": run.began_unix_s,
        "age_s": None if run.age_s is None else round(run.age_s),
        "wall_s": run.summary.get("wall_s", run.last.get("elapsed_s")),
        "machine": run.machine,
        "error": run.summary.get("error"),
    }


def table_lines(runs: Sequence[RunReading]) -> list[str]:
    """Columns as wide as what is in them; no line of it is cut."""
    rows = [_HEADINGS, *map(_row, runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    right = {_HEADINGS.index(name) for name in ("score", "steps", "experience")}
    return [
        "  ".join(
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def score_text(run: RunReading) -> str:
    if run.score is None:
        return "-"
    text = percent(run.score) if run.is_share else number(run.score)
    return text if run.evaluation else f"{text} (training)"


def _row(run: RunReading) -> tuple[str, ...]:
    return (
        run.name,
        run.recipe,
        run.method,
        run.status,
        score_text(run),
        number(run.learner_steps),
        f"{number(run.experience)} {run.counts.units}" if run.experience is not None else "-",
        "-" if run.age_s is None else f"{_age(run.age_s)} ago",
        run.machine,
    )


def _age(seconds: float) -> str:
    days = int(seconds // 86_400)
    return duration(seconds) if days < 2 else f"{days} days"


def _readable(directory: Path) -> RunReading | None:
    try:
        return read_run_directory(directory)
    except BadInput:
        return None
