"""A search for a reward: rewards that a language model writes, each judged by the policy that learns by it. A recipe of
the control half with a section `design`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.kinds.design import SETTINGS
from rollcall.deploy.config.recipe.design_config import DesignRunConfig
from rollcall.deploy.kinds.control.control_kind import CONTROL, unfit_of
from rollcall.deploy.kinds.control.factory import ControlFactory
from rollcall.deploy.kinds.control.policy import LoadedControl, elsewhere
from rollcall.deploy.kinds.kind import Preparation, RunKind, StoredRun
from rollcall.deploy.plan.needs import Needs
from rollcall.deploy.report.closing import eval_line, report_line
from rollcall.deploy.report.counted import ENV_STEPS
from rollcall.deploy.report.live_view import online_console
from rollcall.deploy.report.progress import duration, number
from rollcall.deploy.rundir.candidates import JOURNAL, best_of, read_candidates, run_of
from rollcall.deploy.rundir.earlier_runs import read_run


@dataclass(frozen=True)
class DesignRun:
    """One search, as a SearchRun."""

    config: DesignRunConfig
    run_directory: Path

    drive: Literal["search"] = "search"

    def needs(self) -> Needs:
        return ControlFactory(self.config, self.run_directory.resolve()).needs()

    def preparations(self) -> Iterator[Preparation]:
        yield from ()


def _load(run: StoredRun) -> LoadedControl:
    """The policy of the best candidate.

    Raises:
      BadInput: where there is none yet.
    """
    best = best_of(read_candidates(run.directory))
    if best is None:
        raise BadInput(f"{run.directory}: none of its candidates is trained yet: rollcall resume {run.directory}")
    directory = run_of(run.directory, best.name)
    settings, config_hash = read_run(directory)
    return LoadedControl.of(StoredRun(CONTROL, CONTROL.settings.read(settings), directory, config_hash))


def _closing_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    counts, wall = summary["candidates"], duration(float(summary.get("wall_s") or 0))
    told = f"{counts['trained']} candidates trained, {counts['failed']} failed"
    lines = [f"{summary['status']} in {wall}: {told}, {number(summary[ENV_STEPS.total])} env steps"]
    if summary.get("best"):
        best = run_of(run_directory, summary["best"])
        lines.append(f"best: candidate {summary['best']}, fitness {number(summary['fitness'], 3)}: {best}")
    return [*lines, report_line(run_directory)]


DESIGN = RunKind(
    settings=SETTINGS,
    counts=ENV_STEPS,
    make=DesignRun,
    load=_load,
    elsewhere=elsewhere,
    closing_lines=_closing_lines,
    console=online_console,
    unfit=partial(unfit_of, scored=True),
    eval_line=eval_line,
    data="candidate rewards",
    policy="network",
    exportable=True,
    resumable=lambda directory: (directory / JOURNAL).exists(),
)
