"""The head of a run's page: what was run and how it ended, from which state of whose project, when and where, and which
settings somebody chose. Plain Python over config.yaml, summary.json and run.json; must never import torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from html import escape
from typing import Any

from rollcall.deploy.report import preference_report

_STATUS = {
    "completed": ("good", "completed"),
    "stopped": ("warn", "stopped"),
    "failed": ("bad", "failed"),
    "running": ("warn", "not finished"),
}
_LONGEST_VALUE = 60  # characters of a setting's value


def header(name: str, config: Mapping[str, Any], summary: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    status = str(summary.get("status", "running"))
    tone, word = _STATUS.get(status, ("warn", status))
    text = (
        f'<header><div class="row"><h1>{escape(name)}</h1><span class="badge {tone}">{escape(word)}</span></div>'
        f"<p>{escape(' · '.join(_facts(config, summary, origin)))}</p>"
    )
    came_from = _came_from(origin)
    text += f"<p>{escape(' · '.join(came_from))}</p>" if came_from else ""
    if summary.get("error"):
        text += f'<p class="error">{escape(str(summary["error"]))}</p>'
    return f"{text}{_written(origin)}</header>"


def eval_mode(config: Mapping[str, Any]) -> str:
    """How evaluations of the run act."""
    evaluation = config.get("eval")
    greedy = evaluation.get("greedy", True) if isinstance(evaluation, Mapping) else True
    return "greedy" if greedy else "sampled"


def _facts(config: Mapping[str, Any], summary: Mapping[str, Any], origin: Mapping[str, Any]) -> list[str]:
    where = _name(config["task"], "name") if "task" in config else _name(config.get("env"), "id")
    on_preferences = "data" in config and "env" not in config
    method = [f"{summary.get('algorithm') or _name(config.get('algorithm'), 'name')} on {where}"]
    return [
        f"recipe {summary.get('recipe') or origin.get('recipe', '?')}",
        *(preference_report.facts(config, summary) if on_preferences else method),
        *([f"begun from {_name(origin['init_from'], 'checkpoint')}"] if "init_from" in origin else []),
        f"seed {summary.get('seed', config.get('seed', '?'))}",
        *([] if "data" in config else [f"{config.get('runtime', 'ray')} runtime"]),
    ]


def _came_from(origin: Mapping[str, Any]) -> list[str]:
    """When, where, and from which commit."""
    began, machine, project = origin.get("began_unix_s"), origin.get("machine") or {}, origin.get("project") or {}
    facts = []
    if isinstance(began, int | float):
        facts.append(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began)))
    if machine:
        cores = f"{machine['cpu_cores']} cores" if machine.get("cpu_cores") else ""
        named = (str(machine.get("host") or ""), cores, str(machine.get("system") or ""))
        facts.append(", ".join(part for part in named if part))
    if project.get("commit"):
        changed = {"True": ", with changes", "False": ""}.get(str(project.get("changed")), ", changes not known")
        facts.append(f"{project.get('name', 'project')} at commit {str(project['commit'])[:10]}{changed}")
    return facts


def _written(origin: Mapping[str, Any]) -> str:
    """What is not as the recipe has it, and what is not as it is by default. Runs before this was kept have none."""
    written = origin.get("written")
    if not isinstance(written, Mapping):
        return ""
    over, chosen = _mapping(written.get("over")), _mapping(written.get("chosen"))
    rows = []
    if over:
        cells = [
            _setting(key, *(pair if isinstance(pair, list) and len(pair) == 2 else (None, pair)))
            for key, pair in over.items()
        ]
        rows.append(f'<p class="chosen">Other than the recipe: {"".join(cells)}</p>')
    rest = {key: value for key, value in chosen.items() if key not in over}
    if rest:
        cells = [f"<code>{escape(key)}={escape(_text(value))}</code>" for key, value in rest.items()]
        rows.append(f'<p class="chosen">Other than the defaults: {"".join(cells)}</p>')
    return "".join(rows)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _setting(key: str, before: Any, now: Any) -> str:
    old = f" <s>{escape(_text(before))}</s>" if before is not None else ""
    return f"<code>{escape(key)}={escape(_text(now))}{old}</code>"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _name(section: Any, key: str) -> str:
    return str(section.get(key, "?") if isinstance(section, Mapping) else section)
