"""What the report says of a run on preferences beside its curves: who was right, of which group, and whether the model
knows how sure to be. Plain Python over summary.json; must never import torch."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rollcall.deploy.report.progress import duration, number, percent


def facts(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    """Of the header."""
    data = config.get("data") or {}
    method = summary.get("algorithm") or (config.get("algorithm") or config.get("loss") or {}).get("name", "?")
    return [str(method), f"on {data.get('train') or 'made-up comparisons'}"]


def tiles(summary: Mapping[str, Any]) -> list[tuple[str | None, str]]:
    held_out, comparisons = summary.get("held_out") or {}, summary.get("comparisons") or {}
    accuracy = held_out.get("accuracy", held_out.get("mean"))
    calibration = summary.get("calibration") or {}
    worst = held_out.get("worst_group_accuracy")
    kl = (summary.get("final_eval") or {}).get("kl_reference")
    interval = f"{percent(held_out.get('low'))} to {percent(held_out.get('high'))}, {number(held_out.get('n'))} pairs"
    return [
        (percent(accuracy) if accuracy is not None else None, f"held-out pairs right ({interval})"),
        (percent(worst) if worst is not None else None, "right of the worst group"),
        (number(held_out.get("loss", held_out.get("eval_loss")), 3), "held-out loss"),
        (number(calibration.get("expected_calibration_error"), 3), "expected calibration error"),
        (number(kl, 2) if kl is not None else None, "KL to the reference, nats"),
        (number(comparisons.get("train")), "comparisons learnt from"),
        (number(summary.get("learner_steps")), "learner steps"),
        (duration(float(summary["wall_s"])) if summary.get("wall_s") is not None else None, "wall time"),
    ]


def tables(summary: Mapping[str, Any]) -> str:
    """The comparisons, by where they stood and who judged; and the counts behind the calibration plot."""
    rows = []
    step = (summary.get("kept") or {}).get("step")
    kept = "held out" if step is None else f"held out, by the model that is kept (of step {number(step)})"
    shown = (("train", "learnt from"), ("held_out", kept), ("held_out_last", "held out, by the model of the last step"))
    for name, text in shown:
        found = summary.get(name) or {}
        if found:
            rows.append(_row(text, found))
        rows += [_row(f"{text}, {group}", own) for group, own in (found.get("groups") or {}).items()]
    left_out = (summary.get("comparisons") or {}).get("left_out")
    note = (
        f"<p>{number(left_out)} comparisons were left out: too long, or of a segment that is held out.</p>"
        if left_out
        else ""
    )
    head = "<tr><th>Comparisons</th><td class=n>right</td><td class=n>95% interval</td><td class=n>pairs</td>"
    text = (
        f'<div class="card"><table>{head}<td class=n>loss</td></tr>{"".join(rows)}</table>{note}</div>' if rows else ""
    )
    bins = (summary.get("calibration") or {}).get("bins") or []
    if bins:
        cells = "".join(
            f"<tr><td class=n>{b['confidence']:.3f}</td><td class=n>{b['frequency']:.3f}</td>"
            f"<td class=n>{b['n']}</td></tr>"
            for b in bins
        )
        head = "<tr><td class=n>predicted</td><td class=n>observed</td><td class=n>pairs</td></tr>"
        text += f'<div class="card"><table>{head}{cells}</table></div>'
    return f'<h2>Comparisons</h2><div class="columns">{text}</div>' if text else ""


def _row(name: str, found: Mapping[str, Any]) -> str:
    values = (
        percent(found.get("accuracy", found.get("mean"))),
        f"{percent(found.get('low'))} to {percent(found.get('high'))}",
        number(found.get("n")),
        number(found.get("loss", found.get("eval_loss")), 3),
    )
    return f"<tr><th>{escape(name)}</th>{''.join(f'<td class=n>{escape(value)}</td>' for value in values)}</tr>"
