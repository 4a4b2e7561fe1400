"""The reference of the command line, generated from its own parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rollcall.deploy.documents.settings_page import escaped


def commands_page(parser: argparse.ArgumentParser) -> str:
    """Markdown: a section for each command, with its arguments."""
    lines = [
        "# Command line",
        "",
        "Exit codes: 0 done, 1 failed, 2 bad input (one line says what to change), 130 interrupted with a checkpoint. "
        "This page is generated from the command's own parser.",
    ]
    for name, command in _commands(parser, "rollcall"):
        lines += ["", f"## {name}", "", _sentence(command.description), ""]
        lines += ["```", " ".join(command.format_usage().removeprefix("usage: ").split()), "```", ""]
        rows = [_row(action) for action in command._actions if action.help is not argparse.SUPPRESS]
        rows = [row for row in rows if row]
        if rows:
            lines += ["| argument | what it does |", "| --- | --- |", *rows]
        if command.epilog:
            lines += ["", _sentence(command.epilog)]
    return "\n".join(lines) + "\n"


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield name, parser
    for action in inner:
        for word, command in action.choices.items():
            yield from _commands(command, f"{name} {word}")


def _row(action: argparse.Action) -> str:
    if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
        return ""
    shown = str(action.metavar or action.dest.upper()) if action.nargs != 0 else ""
    names = [f"{option} {shown}".strip() for option in action.option_strings] or [shown]
    if action.choices:
        names = list(action.option_strings) or [shown]
        names[0] += " " + ",".join(map(str, action.choices))
    return (
        f"| {', '.join(f'`{escaped(name)}`' for name in names)} | {escaped((action.help or '').replace('%%', '%'))} |"
    )


def _sentence(text: str | None) -> str:
    said = escaped((text or "").replace("%%", "%")).strip()
    return said[:1].upper() + said[1:] + ("" if said.endswith((".", ":")) or not said else ".")
