"""What the report says of the rounds in which raters were asked while the policy learnt. Plain Python over the run
directory; must never import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rollcall.deploy.preferences.round_book import REWARD_MODELS, read_rounds
from rollcall.deploy.report.curves import Records
from rollcall.deploy.report.progress import number, percent

_HEAD = (
    "labels",
    "new",
    "policy version",
    "reward model",
    "last model right about the new",
    "right about held-out labels",
    "raters agree",
    "KL to the reference, nats a token",
    "true measure",
)
_TRUE = ("reward_task", "return_mean")  # of a task's own measure, of an env's: nobody learns from it


def table(run_directory: Path, records: Records) -> str:
    """A row for each reward model; KL and the true measure are those of the last step that it scored. A column of which
    nothing is known is left out."""
    rounds = read_rounds(run_directory / REWARD_MODELS)
    ends = [int(later["policy_version"]) - 1 for later in rounds[1:]]
    rows = [_row(found, _record(records, end)) for found, end in zip(rounds, [*ends, None], strict=False)]
    if not rows:
        return ""
    known = [column for column in range(len(_HEAD)) if any(row[column] != "-" for row in rows)]
    head = "".join(f"<td class=n>{escape(_HEAD[column])}</td>" for column in known)
    body = "".join(f"<tr>{''.join(f'<td class=n>{escape(row[column])}</td>' for column in known)}</tr>" for row in rows)
    note = "A reward model that was worse about the new labels than the one before it was not taken."
    refused = f"<p>{note}</p>" if not all(found["swapped_in"] for found in rounds) else ""
    return f'<h2>Rounds of labels</h2><div class="card"><table><tr>{head}</tr>{body}</table>{refused}</div>'


def _record(records: Records, step: int | None) -> Mapping[str, Any]:
    """Of that learner step, or the last one before it that is known; None: of the last of all."""
    known = [record for record in records if step is None or int(record.get("step", 0)) <= step]
    return known[-1] if known else {}


def _row(found: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    agreement = (found.get("agreement") or {}).get("agreement")
    version = str(found["model_version"])[:8] + ("" if found["swapped_in"] else ", kept")
    true = next((record[name] for name in _TRUE if record.get(name) is not None), None)
    return [
        number(found["labels"]),
        number(found["new_labels"]),
        number(found["policy_version"]),
        version,
        _right(found.get("fresh")),
        _right(found.get("held_out")),
        "-" if agreement is None else percent(agreement),
        number(record.get("kl_reference"), 3),
        number(true, 3),
    ]


def _right(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "-"
    interval: Sequence[str] = [percent(found[name]) for name in ("low", "high")]
    return f"{percent(found['accuracy'])} [{interval[0]}, {interval[1]}] of {number(found['n'])}"
