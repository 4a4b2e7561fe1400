"""Control from a recorded set: behavioural cloning, offline reinforcement learning. A recipe with an env and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollcall.deploy.config.checks import check_device, check_env
from rollcall.deploy.config.kinds.offline import SETTINGS
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.offline_config import OfflineConfig
from rollcall.deploy.kinds.control.offline_run import OfflineControlRun
from rollcall.deploy.kinds.control.policy import LoadedControl, elsewhere
from rollcall.deploy.kinds.control.policy_fit import misfit_between
from rollcall.deploy.kinds.kind import RunKind
from rollcall.deploy.report.closing import eval_line, evaluated, report_line, steps_line
from rollcall.deploy.report.counted import RECORDED
from rollcall.deploy.report.offline_progress import ProgressLines
from rollcall.deploy.report.progress import number


def _unfit(config: OfflineConfig) -> list[Problem]:
    return check_device(config) or check_env(config.env, config.policy, config.build_algorithm())


def _misfit(config: OfflineConfig, loaded: LoadedControl) -> str:
    made = OfflineControlRun(config, Path().resolve())
    return misfit_between(config.policy, loaded, lambda: made.spaces, made.models)


def _closing_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    recorded = summary["recorded"]
    mean, deviation = number(recorded["recorded_return_mean"]), number(recorded["recorded_return_std"])
    lines = [
        steps_line(summary),
        f"learnt from {number(recorded['recorded_steps'])} steps of {number(recorded['episodes'])} episodes, whose "
        f"returns are {mean} ± {deviation}",
    ]
    for name, text in (("first_eval", "before training"), ("final_eval", "final evaluation")):
        if summary.get(name) and summary[name]["n"]:
            lines += evaluated(text, summary[name])
    goes_on = f"learn on from it with: rollcall train RECIPE policy.init_from={run_directory}"
    return [*lines, report_line(run_directory), goes_on]


OFFLINE = RunKind(
    settings=SETTINGS,
    counts=RECORDED,
    make=OfflineControlRun,
    load=LoadedControl.of,
    elsewhere=elsewhere,
    closing_lines=_closing_lines,
    console=ProgressLines,
    unfit=_unfit,
    eval_line=eval_line,
    data="recorded episodes",
    policy="network",
    exportable=True,
    misfit=_misfit,
)
