"""Runs held against each other: seeds grouped, the mean of each group with its interval, the settings that differ, and
curves over learner steps, experience and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollcall.deploy.overview.group_curves import STEPS, TIME, Axis, GroupCurve, group_curve
from rollcall.deploy.overview.grouping import Group, grouped, setting_text
from rollcall.deploy.overview.run_reading import RunReading, read_run_directory
from rollcall.deploy.overview.statistics import Mean, mean_of
from rollcall.deploy.report.counted import TOKENS, Counted
from rollcall.deploy.report.curves import title_of
from rollcall.deploy.report.progress import duration, number, percent
from rollcall.deploy.report.run_lines import iter_jsonl, thinned

INTERVAL = "95 % t interval of the mean over seeds"
# What training reports that runs are compared by, in the order worth reading; what none reports is left out.
_COMPARED = (
    *("return_mean", "reward_mean", "reward_task", "exact_match", "kl_reference", "entropy", "length_mean"),
    *("episode_length_mean", "explained_variance", "approx_kl", "truncated_fraction", "unparsed_fraction", "lag_mean"),
)
_AT_MOST = 2000  # records of a run


@dataclass(frozen=True)
class Curve:
    """One thing over one axis, by group: those groups that have it."""

    key: str
    title: str
    axis: Axis
    by_group: Mapping[int, GroupCurve]


@dataclass(frozen=True)
class Comparison:
    """All of it. `differing`: setting -> its value in each group."""

    groups: Sequence[Group]
    differing: Mapping[str, Sequence[Any]]
    scores: Sequence[Mean | None]  # of each group's evaluations, or of training where a run has none
    curves: Sequence[Curve]

    @property
    def is_share(self) -> bool:
        return any(run.is_share for group in self.groups for run in group.runs)

    def score_text(self, index: int) -> str:
        mean = self.scores[index]
        if mean is None:
            return "-"
        show = percent if self.is_share else number
        if mean.low is None:
            return f"{show(mean.mean)} (one seed)"
        return f"{show(mean.mean)} [{show(mean.low)}, {show(mean.high)}]"


def compare(directories: Sequence[Path]) -> Comparison:
    """Raises BadInput: when one of them is no run."""
    groups, differing = grouped([read_run_directory(directory) for directory in dict.fromkeys(directories)])
    scores = [mean_of([run.score for run in group.runs if run.score is not None]) for group in groups]
    return Comparison(groups, differing, scores, _curves(groups))


def _curves(groups: Sequence[Group]) -> list[Curve]:
    trained = [[_records(run, "metrics") for run in group.runs] for group in groups]
    evaluated = [[_records(run, "evals") for run in group.runs] for group in groups]
    axes = [_experience(groups), STEPS, TIME]
    keys = {key for runs in trained for records in runs for record in records for key in record}
    first = next((key for key in _COMPARED if key in keys), None)
    wanted = [("mean", "Evaluation", axes[0], evaluated)]
    wanted += [(first, title_of(first), axis, trained) for axis in axes if first is not None]
    wanted += [(key, title_of(key), axes[0], trained) for key in _COMPARED if key in keys and key != first]
    curves = []
    for key, title, axis, source in wanted:
        found = {
            index: curve
            for index, runs in enumerate(source)
            if (curve := group_curve(runs, key, axis, smooth=source is trained)) is not None
        }
        if found:
            curves.append(Curve(key, title, axis, found))
    return curves


def _records(run: RunReading, name: str) -> list[dict[str, Any]]:
    return thinned(iter_jsonl(run.directory / f"{name}.jsonl"), _AT_MOST)


def _experience(groups: Sequence[Group]) -> Axis:
    counted: Counted = next((run.counts for group in groups for run in group.runs if run.last), TOKENS)
    return Axis(counted.key, counted.units)


def as_lines(found: Comparison) -> list[str]:
    """For a terminal: the groups with their seeds, then what differs."""
    lines = []
    width = max(len(group.label) for group in found.groups)
    for index, group in enumerate(found.groups):
        of = "evaluation" if all(run.evaluation for run in group.runs) else "training"
        lines.append(f"{group.label:<{width}}  {found.score_text(index)}  {len(group.runs)} seeds, {of}")
        lines += [f"  {_run_line(run, found.is_share)}" for run in group.runs]
    if len(found.groups) > 1:
        lines.append("settings that differ:")
        for key, values in found.differing.items():
            lines.append(f"  {key}: {' | '.join(map(setting_text, values))}")
    lines.append(f"[...]: {INTERVAL}")
    return [line.replace(" 1 seeds", " 1 seed") for line in lines]


def _run_line(run: RunReading, share: bool) -> str:
    score = percent(run.score) if share else number(run.score)
    wall = run.summary.get("wall_s", run.last.get("elapsed_s"))
    took = f", {duration(float(wall))}" if wall is not None else ""
    return f"{run.name}: {score}, seed {run.seed}, {run.status}, {number(run.experience)} {run.counts.units}{took}"


def as_json(found: Comparison) -> dict[str, Any]:
    """Everything but the curves, which are in the CSV."""
    groups = []
    for index, group in enumerate(found.groups):
        mean = found.scores[index]
        groups.append(
            {
                "label": group.label,
                "score": None if mean is None else {"mean": mean.mean, "low": mean.low, "high": mean.high, "n": mean.n},
                "runs": [
                    {"run": run.name, "seed": run.seed, "status": run.status, "score": run.score}
                    | {"score_of": run.score_of, "learner_steps": run.learner_steps, run.counts.key: run.experience}
                    for run in group.runs
                ],
            }
        )
    return {"groups": groups, "interval": INTERVAL, "differing_settings": found.differing}
