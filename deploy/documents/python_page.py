"""The reference of what is called from Python, generated from signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence

# module -> (what it is for, the names that users call or write)
PUBLIC: Sequence[tuple[str, str, Sequence[str]]] = (
    (
        "rollcall",
        "Train, resume, evaluate, load and export",
        ("train", "resume", "evaluate", "load_policy", "export", "Result", "BadInput"),
    ),
    ("rollcall.deploy.kinds.control.policy", "A loaded control policy", ("LoadedPolicy",)),
    ("rollcall.deploy.report.recorders", "A recorder of your own", ("Recorder",)),
    (
        "rollcall.actors.tasks.text_task",
        "A task of your own",
        ("Task", "Row", "Segment", "Judgement", "TextEnv", "TextStep"),
    ),
    ("rollcall.learners.algorithm", "An algorithm of your own", ("Algorithm", "Needs", "Context", "Loss", "Minibatch")),
    ("rollcall.reward_service.protocol", "What a reward is asked", ("ScoreItem", "Message", "ItemResult")),
)


def python_page() -> str:
    """Markdown: a section for each module, with each name's signature and docstring."""
    lines = [
        "# Python",
        "",
        "What a program of yours may rely on. Everything else may change from one release to the next. This page is "
        "generated from the docstrings.",
    ]
    for module_name, title, names in PUBLIC:
        module = importlib.import_module(module_name)
        lines += ["", f"## {title}", "", f"`{module_name}`"]
        for name in names:
            lines += ["", f"### {name}", "", *_described(name, getattr(module, name))]
    return "\n".join(lines) + "\n"


def _described(name: str, found: object) -> list[str]:
    lines = ["```python", _signature(name, found), "```", "", _text(found)]
    if isinstance(found, type):
        for method, value in vars(found).items():
            function = value.fget if isinstance(value, property) else value
            if method.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
                continue
            lines += ["", "```python", _signature(method, function), "```", "", _text(function)]
    return lines


def _signature(name: str, found: object) -> str:
    try:
        signature = str(inspect.signature(found))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        signature = ""
    kind = "class" if isinstance(found, type) else "def"
    plain = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)  # annotations that are not evaluated stand in quotes
    return f"{kind} {name}{plain}".replace("rollcall.", "")


def _text(found: object) -> str:
    """A docstring; what belongs to Raises: and Args: as a block below it."""
    lines: list[str] = []
    for line in (inspect.getdoc(found) or "").splitlines():
        if line in ("Raises:", "Args:", "Returns:"):
            lines += ["", line, ""]
        else:
            lines.append(f"  {line}" if line.startswith("  ") else line.replace("<", "&lt;"))
    return "\n".join(lines)
