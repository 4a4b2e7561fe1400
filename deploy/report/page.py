"""Writes report.html: one page of a run that asks nothing of the network. Reads the run directory alone, so it works on
a run that is going on, was killed, or comes from another machine; must never import torch or ray."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from rollcall.cluster.books.settings_history import SettingsSpan, booked_spans
from rollcall.cluster.errors import BadInput, CheckpointDamaged
from rollcall.cluster.files import read_json, write_aside
from rollcall.cluster.inputs.passwords import without_passwords
from rollcall.cluster.metrics.names import GROUPS, Group
from rollcall.deploy.report import candidate_report, preference_report, round_report
from rollcall.deploy.report.chart_choice import Choice, chosen
from rollcall.deploy.report.counted import PAIRS_RIGHT, TOKENS, Counted, counted_in
from rollcall.deploy.report.curves import Records, build_charts, calibration_chart, comparison_charts
from rollcall.deploy.report.kl_curve import kl_curve
from rollcall.deploy.report.page_head import eval_mode, header
from rollcall.deploy.report.page_parts import figures, tile_row, whole_page
from rollcall.deploy.report.progress import duration, number, percent
from rollcall.deploy.report.run_lines import iter_jsonl, thinned
from rollcall.deploy.rundir.candidates import read_candidates

_HEADINGS: Mapping[Group, str] = {group: group.capitalize() for group in GROUPS}
_MAX_EVENTS = 200
_LONGEST_PROMPT, _LONGEST_COMPLETION = 400, 1200  # characters shown


def write_report(run_directory: Path, *, beside: Sequence[Path] = ()) -> Path:
    """Writes <run>/report.html and returns its path. `beside`: other runs whose curves stand in the same
    charts.

    Raises:
      BadInput: when the directory holds no run.
    """
    if not (run_directory / "config.yaml").exists():
        raise BadInput(f"{run_directory}: no run here (config.yaml is missing); give a directory under runs/")
    config_text = (run_directory / "config.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(config_text) or {}
    records, evals = (thinned(iter_jsonl(run_directory / f"{name}.jsonl")) for name in ("metrics", "evals"))
    summary, origin = read_json(run_directory / "summary.json"), read_json(run_directory / "run.json")
    counts = counted_in([*records, *evals])
    pairs = any(evaluation.get("unit") == PAIRS_RIGHT for evaluation in evals)
    segments = _segments(run_directory)
    marks = [(s.step, str(s)) for s in segments[1:]]
    mode = eval_mode(config)
    charts = build_charts(records, evals, counts=counts, marks=marks, eval_mode=mode)
    bins = (summary.get("calibration") or {}).get("bins")
    if bins:
        charts.insert(min(2, len(charts)), calibration_chart(bins))
    charts[1:1] = kl_curve(records)
    candidates = read_candidates(run_directory)
    choice = Choice({"learning": candidate_report.charts(run_directory, candidates)}) if candidates else chosen(charts)
    compared, others = _compared((run_directory, *beside), records)
    drawn = [*compared]
    sections = {}
    for group, own in choice.groups.items():
        heading = "Candidates" if candidates else f"{_HEADINGS[group]}, over {counts.units}"
        sections[group] = figures(own, first=len(drawn), heading=heading)
        drawn += own
    tiles = preference_report.tiles(summary) if pairs else _tiles(summary, records, evals, counts, mode)
    body = [
        header(run_directory.resolve().name, config, summary, origin),
        tile_row(candidate_report.tiles(candidates)) if candidates else "",
        tile_row(tiles),
        figures(compared, heading=f"Beside {', '.join(others)}") if others else "",
        sections["learning"] or ("" if records else "<h2>Learning</h2><p>No learner step was recorded yet.</p>"),
        candidate_report.tree(run_directory, candidates),
        round_report.table(run_directory, records),
        _samples(run_directory / "samples.jsonl"),
        preference_report.tables(summary),
        *(sections.get(group, "") for group in ("behaviour", "engine", "time")),
        sections.get("books") or "<h2>Books</h2>",
        _left_out(choice.left_out),
        '<div class="columns">',
        "" if candidates or ("ledger" not in summary and (pairs or summary)) else _ledger(summary),
        _machine(origin),
        "</div>",
        _segment_table(segments),
        _events(iter_jsonl(run_directory / "events.jsonl")),
        f"<details><summary>Configuration</summary><pre>{escape(without_passwords(config_text))}</pre></details>",
        f"<footer>{escape(str(origin.get('command', 'rollcall')))}</footer>",
    ]
    page = whole_page(run_directory.resolve().name, "\n".join(body), drawn)
    path = run_directory / "report.html"
    write_aside(path, page.encode(errors="replace"))  # a completion may hold half a surrogate pair
    return path


def _left_out(reasons: Sequence[str]) -> str:
    if not reasons:
        return ""
    return f'<p class="left-out">Not drawn: {escape("; ".join(reasons))}.</p>'


def _compared(runs: Sequence[Path], own: Records) -> tuple[list[dict[str, Any]], list[str]]:
    """The charts of several runs, of which `own` are the first one's records; and what the others are called: by their
    directory's name, or its whole path where two have the same."""
    if len(runs) == 1:
        return [], []
    names = [run.resolve().name for run in runs]
    names = [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]
    records = [own, *(thinned(iter_jsonl(run / "metrics.jsonl")) for run in runs[1:])]
    return comparison_charts(dict(zip(names, records, strict=True))), names[1:]


def _tiles(
    summary: Mapping[str, Any], records: Records, evals: Records, counts: Counted, mode: str
) -> list[tuple[str | None, str]]:
    last = records[-1] if records else {}
    final = summary.get("final_eval") or (evals[-1] if evals else {})
    wall = summary.get("wall_s", last.get("elapsed_s"))
    lag = summary.get("policy_lag") or {}
    speed = summary.get(counts.speed)
    if speed is None and last.get("elapsed_s"):
        speed = (last.get(counts.key) or 0) / last["elapsed_s"]
    total = summary.get(counts.total, last.get(counts.key))
    score = _score(final, counts) if final else None
    left = f", {final['unfinished']} unfinished" if final.get("unfinished") else ""
    steps = number(summary.get("learner_steps", last["step"] + 1 if last else None))
    counted = counts.total.replace("_", " ")
    bound = f", {summary['bound_fraction']:.0%} of this machine's bound" if summary.get("bound_fraction") else ""
    whose = "final" if summary.get("final_eval") else "latest"
    return [
        (score, f"{whose} evaluation ({mode}), {final.get('n', '?')} {counts.trial}{left}"),
        _trained(last, counts),
        (steps, "learner steps") if total is None else (number(total), f"{counted}, {steps} learner steps"),
        (duration(float(wall)) if wall is not None else None, "wall time"),
        (f"{number(speed)} {counts.per_second}" if speed is not None else None, f"speed{bound}"),
        (number(lag.get("max")) if lag else None, f"largest policy lag (mean {number(lag.get('mean'))})"),
    ]


def _trained(last: Mapping[str, Any], counts: Counted) -> tuple[str | None, str]:
    if counts.trial == TOKENS.trial:
        return number(last.get("reward_mean")), "training reward (sampled), the last batch"
    return number(last.get("return_mean")), "training return (sampled), the last 100 episodes"


def _score(evaluation: Mapping[str, Any], counts: Counted) -> str:
    if counts.trial == TOKENS.trial and evaluation.get("unit") != "reward":
        return percent(evaluation.get("mean"))
    return f"{number(evaluation.get('mean'))} ± {number(evaluation.get('std'))}"


def _samples(path: Path) -> str:
    """What the language model wrote at the first, the middle and the last recorded step."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    lines = [line for line in lines if line.endswith(b"\n")]  # the last one may be cut short by a kill
    rows = []
    for index in sorted({0, (len(lines) - 1) // 2, len(lines) - 1} if lines else ()):
        step, samples = _sampled(lines[index])
        for position, sample in enumerate(samples):
            at = f"<th rowspan={len(samples)}>{number(step)}</th>" if position == 0 else ""
            prompt = escape(_cut(str(sample.get("prompt", "")), _LONGEST_PROMPT))
            text = escape(_cut(str(sample.get("text", "")), _LONGEST_COMPLETION))
            reward = number(sample.get("reward"), 2)
            rows.append(f'<tr>{at}<td class="t">{prompt}</td><td class="t">{text}</td><td class=n>{reward}</td></tr>')
    if not rows:
        return ""
    head = "<tr><th>Step</th><th>Prompt</th><th>Completion</th><th class=n>Reward</th></tr>"
    return f'<h2>Sample completions</h2><div class="card samples"><table>{head}{"".join(rows)}</table></div>'


def _sampled(line: bytes) -> tuple[Any, list[Mapping[str, Any]]]:
    """(step, samples); none of a line that is damaged."""
    try:
        record = json.loads(line)
        return record["step"], [sample for sample in record["samples"] if isinstance(sample, Mapping)]
    except (ValueError, KeyError, TypeError):
        return None, []


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "..."


def _row(name: str, value: Any, *, sub: bool = False, count: bool = True) -> str:
    text = number(value) if isinstance(value, (int, float)) else str(value)
    tone = ' class="sub"' if sub else ""
    return f"<tr{tone}><th>{escape(name)}</th><td{' class=n' if count else ''}>{escape(text)}</td></tr>"


def _ledger(summary: Mapping[str, Any]) -> str:
    ledger = summary.get("ledger")
    if not isinstance(ledger, Mapping):
        return '<div class="card"><p>The ledger is summed up when the run ends.</p></div>'
    rows = []
    for key, name in (
        ("issued", "Rollouts issued"),
        ("committed", "committed to a learner step"),
        ("dropped", "dropped"),
        ("rolled_back", "rolled back by a restore"),
        ("in_flight", "still in flight"),
        ("duplicates_refused", "Late or duplicate attempts refused"),
    ):
        if key in ledger:
            rows.append(_row(name, ledger[key]))
        if key == "dropped":
            reasons = next((value for value in ledger.values() if isinstance(value, Mapping)), {})
            rows += [_row(str(reason).replace("_", " "), n, sub=True) for reason, n in sorted(reasons.items())]
    restarts = summary.get("restarts")
    if isinstance(restarts, Mapping):
        rows += [_row(f"Restarts: {what}", n) for what, n in sorted(restarts.items())]
    elif restarts is not None:
        rows.append(_row("Restarts", restarts))
    return f'<div class="card"><table>{"".join(rows)}</table></div>'


def _segments(run_directory: Path) -> tuple[SettingsSpan, ...]:
    try:
        return booked_spans(run_directory)
    except CheckpointDamaged:
        return ()  # rollcall audit says so; a report is of what can be read


def _segment_table(segments: Sequence[SettingsSpan]) -> str:
    if len(segments) < 2:
        return ""
    rows = [
        f"<tr><td class=n>step {number(s.step)}</td><td>{escape(str(s).partition(': ')[2] or 'as begun')}</td>"
        f"<td>config {escape(s.config_hash[:12])}</td></tr>"
        for s in segments
    ]
    return f'<h2>Segments</h2><div class="card"><table>{"".join(rows)}</table></div>'


def _machine(origin: Mapping[str, Any]) -> str:
    rows = [_row(str(k).replace("_", " "), v, count=False) for k, v in (origin.get("machine") or {}).items()]
    rows += [_row(str(package), version, count=False) for package, version in (origin.get("versions") or {}).items()]
    return f'<div class="card"><table>{"".join(rows)}</table></div>' if rows else ""


def _events(events: Iterable[dict[str, Any]]) -> str:
    shown: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)
    total = 0
    for event in events:
        shown.append(event)
        total += 1
    if not shown:
        return ""
    rows = [
        f"<tr><td class=n>step {number(e.get('step'))}</td><td>{escape(str(e.get('kind', '')))}</td>"
        f"<td>{escape(str(e.get('text', '')))}</td></tr>"
        for e in shown
    ]
    more = f", the last {_MAX_EVENTS} of {total}" if total > len(shown) else ""
    return f"<details><summary>Events{more}</summary><div><table>{''.join(rows)}</table></div></details>"
