"""The configuration reference, generated from the models that read recipes: every setting of every kind of run, with
its type, its default and what it does."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rollcall.deploy.config import plugins
from rollcall.deploy.config.catalogue.explanation import FOLLOWS, REQUIRED, bounds_text, default_text, type_text
from rollcall.deploy.kinds.kind import RunKind
from rollcall.deploy.kinds.registry import KINDS

_ABOUT = {
    "control": "A policy learns in environments: recipes with `env`.",
    "language": "A language model learns from what it writes: recipes with `task`.",
    "supervised": "Supervised fine-tuning alone: `rollcall sft`, or a recipe with `task` and `algorithm: {name: sft}`.",
    "direct": "A language model learns from preferences without a reward model: recipes with `data` and `algorithm`.",
    "reward_model": "A reward model learns from preferences: `rollcall reward train`.",
    "offline": "A policy learns from a recorded set: recipes with `env` and `data`.",
    "tabular": "A table learns a discrete environment.",
    "bandit": "Bandits.",
    "design": "A language model writes the reward of a control run: recipes with `design`.",
    "expert_iteration": "Rounds of selection and imitation.",
    "constitutional": "A critic by principles, revisions, and their imitation.",
}
_FIRST = ("control", "language", "supervised", "direct")
_PLUGINS = (
    (plugins.ALGORITHM, "algorithm"),
    (plugins.TASK, "task"),
    (plugins.DIRECT_METHOD, "algorithm"),
    (plugins.OFFLINE_METHOD, "algorithm"),
    (plugins.TABULAR, "algorithm"),
    (plugins.BANDIT, "bandit"),
)
_COMMON = "Settings that runs of every kind have"


def settings_page() -> str:
    """Markdown: a section for what all kinds have, one for each kind, and one for each shipped plug-in."""
    kinds = sorted(KINDS, key=lambda kind: (_FIRST.index(kind.name) if kind.name in _FIRST else 99, kind.name))
    shared = set.intersection(*({line for line, _ in _rows(kind.config)} for kind in kinds))
    lines = [
        "# Configuration",
        "",
        "Every setting of a recipe. Write it in the recipe's YAML (`learner: {learning_rate: 1e-3}`) or on the command "
        "line (`learner.learning_rate=1e-3`). `rollcall config RECIPE` prints what a recipe comes to, and `rollcall "
        "config --schema` the JSON schema, which editors check recipes with. This page is generated from the models "
        "that read recipes.",
        "",
        f"## {_COMMON}",
        "",
        *_table([row for line, row in _rows(kinds[0].config) if line in shared]),
    ]
    for kind in kinds:
        own = [row for line, row in _rows(kind.config) if line not in shared]
        lines += ["", f"## {_title(kind)}", "", _ABOUT.get(kind.name, ""), "", *_table(own)]
    for plugin in (
        plugins.ALGORITHM,
        plugins.TASK,
        plugins.DIRECT_METHOD,
        plugins.OFFLINE_METHOD,
        plugins.TABULAR,
        plugins.BANDIT,
    ):
        section = "task" if plugin is plugins.TASK else "bandit" if plugin is plugins.BANDIT else "algorithm"
        for name in plugins.shipped(plugin):
            config = plugins.find(plugin, name).Config
            lines += ["", f"## {plugin.kind.capitalize()}: {name}", ""]
            lines += _table([row for _, row in _rows(config, f"{section}.")])
    return "\n".join(lines) + "\n"


def _title(kind: RunKind) -> str:
    return f"Runs: {kind.name.replace('_', ' ')}"


def _table(rows: list[str]) -> list[str]:
    return ["| setting | type | default | what it does |", "| --- | --- | --- | --- |", *rows]


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(what makes two settings the same, its line of a table) of each, sections flattened to dotted names."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        sections = _sections(field.annotation)
        row = f"| `{path}` | {' | '.join(map(escaped, (_type(field), _default(field), field.description or '')))} |"
        yield f"{path}: {row}", row
        for section in sections:
            kind = section.model_fields.get("kind")
            tag = "" if kind is None or len(sections) < 2 else f" (kind {_default(kind)})"
            for line, inner in _rows(section, f"{path}."):
                yield line, inner.replace("` |", f"`{tag} |", 1)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The models of a section, itself or as parts of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if annotation is BaseModel else [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [section for part in typing.get_args(annotation) for section in _sections(part)]
    return []


def _type(field: FieldInfo) -> str:
    bounds = bounds_text(field)
    return f"{type_text(field.annotation)}, {bounds}" if bounds else type_text(field.annotation)


def _default(field: FieldInfo) -> str:
    """Of a section nothing: its settings have theirs."""
    if _sections(field.annotation) and field.default is not None:
        return ""
    text = default_text(field)
    return text if text in (FOLLOWS, REQUIRED) else f"`{text}`"


def escaped(text: str) -> str:
    """As a cell of a Markdown table has it."""
    return " ".join(text.split()).replace("\\|", "|").replace("|", "\\|").replace("<", "&lt;")
