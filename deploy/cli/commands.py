"""What the commands share: their exit codes, and how one is added to the parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.settings import COMMAND_LINE

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
SETTINGS = "settings such as actors.num=4 algorithm.clip_range=0.1 env=my_module:make_env"


class Add(Protocol):
    """Adds a command, and what carries it out."""

    def __call__(self, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser: ...


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like everything else here."""

    def error(self, message: str) -> NoReturn:
        said = " ".join(message.split())
        if said.startswith("unrecognized arguments: ") and "=" in said and " -" not in said:
            said += ": settings (key=value) stand before the options"
        raise BadInput(f"{said} ({COMMAND_LINE}); see {self.prog} --help")


def at_least(name: str, value: int | None, least: int) -> None:
    """Raises BadInput: for a number on the command line that is too small."""
    if value is not None and value < least:
        raise BadInput(f"{name} = {value} ({COMMAND_LINE}): must be {least} or more")


def answer_slips(recipe: str, overrides: Sequence[str]) -> None:
    """What is wrong with settings, before gymnasium is imported; with the names in them, before torch is.

    Raises:
      BadInput: one line for each.
    """
    from rollcall.deploy.config.kind_settings import checked_recipe

    checked_recipe(recipe, overrides)
    from rollcall.deploy.config.first_looks import look

    look(recipe, overrides)
