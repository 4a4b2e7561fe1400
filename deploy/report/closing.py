"""What is printed when a run has ended, and of an evaluation: from the summary, in lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollcall.deploy.report.counted import Counted
from rollcall.deploy.report.progress import duration, eval_noun, eval_text, number, percent
from rollcall.deploy.rundir.jobs import runs_root


def online_lines(counts: Counted, summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    """Of a run with actors."""
    wall = duration(float(summary.get("wall_s") or 0))
    speed = f"{number(summary.get(counts.speed))} {counts.per_second}"
    bound = summary.get("bound_fraction")
    speed += f" ({bound:.0%} of this machine's bound)" if bound else ""
    steps = f"{number(summary.get(counts.total))} {counts.unit}s, {number(summary.get('learner_steps'))} learner steps"
    lines = [f"{summary.get('status')} in {wall}: {steps}, {speed}"]
    for name, text in (("first_eval", "before training"), ("final_eval", "final evaluation")):
        lines += evaluated(text, summary.get(name))
    return [*lines, report_line(run_directory)]


def policy_line(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    """Where the policy was exported to when the run ended, if it was."""
    if summary.get("policy"):
        return [f"policy: {summary['policy']}"]
    if "policy" in summary:
        log = run_directory / "logs" / "driver.log"
        return [f"policy: not exported, see {log}; again: rollcall export {run_directory}"]
    return []


def pairs_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    """Of a run on preferences."""
    lines = [steps_line(summary)]
    counts = summary["comparisons"]
    left_out = f", {number(counts['left_out'])} left out" if counts["left_out"] else ""
    lines.append(f"comparisons: {number(counts['train'])} learnt from, {number(counts['held_out'])} held out{left_out}")
    for name, text in (("train", "those learnt from"), ("held_out", "held out")):
        if summary[name]:
            lines.append(f"{text}: {pairs_right(summary[name])}")
    if last := summary.get("held_out_last"):
        kept, done = number(summary["kept"]["step"]), number(summary["learner_steps"])
        lines.append(f"kept: the model of step {kept}; that of step {done}, the last: {pairs_right(last)}")
    return [*lines, report_line(run_directory)]


def steps_line(summary: Mapping[str, Any]) -> str:
    return f"{summary['status']} in {duration(summary['wall_s'])}: {number(summary['learner_steps'])} learner steps"


def report_line(run_directory: Path) -> str:
    return f"report: {run_directory / 'report.html'}"


def next_line(run_directory: Path, *, evaluates: bool, exports: bool) -> str:
    """What one does with a run that is completed, as it is typed."""
    found_by_name = run_directory == runs_root() / run_directory.name
    run = shlex.quote(run_directory.name if found_by_name else str(run_directory))
    wanted = {"eval": evaluates, "report": True, "export": exports}
    commands = [f"rollcall {command} {run}" for command, is_there in wanted.items() if is_there]
    return f"next: {' · '.join(commands)}"


def evaluated(what: str, evaluation: Mapping[str, Any] | None) -> list[str]:
    return [f"{what}: {eval_text(evaluation)} {eval_noun(evaluation)}"] if evaluation else []


def eval_line(result: Mapping[str, Any]) -> str:
    """Of `rollcall eval`, of a policy that acts or answers."""
    unparsed = f", {result['unparsed']} unparsed" if result.get("unparsed") else ""
    return f"{result['checkpoint']}: {eval_text(result)} {eval_noun(result)} ({result['mode']}{unparsed})"


def pairs_eval_line(result: Mapping[str, Any]) -> str:
    """Of `rollcall eval`, of what was learnt from comparisons."""
    return f"{result['checkpoint']}: {pairs_right(result)}"


def pairs_right(found: Mapping[str, Any]) -> str:
    """How many held-out pairs a model or a policy is right about."""
    accuracy = found.get("accuracy", found.get("mean"))
    loss = found.get("loss", found.get("eval_loss"))
    text = f"{percent(accuracy)} [{percent(found.get('low'))}, {percent(found.get('high'))}] of {number(found['n'])} "
    text += f"pairs right, loss {number(loss, 3)}"
    for name, own in (found.get("groups") or {}).items():
        text += f"; {name} {percent(own['accuracy'])} of {number(own['n'])}"
    if found.get("kl_reference") is not None:
        text += f"; KL to the reference {number(found['kl_reference'], 2)}"
    return text
