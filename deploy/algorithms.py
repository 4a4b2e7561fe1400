"""Finds an algorithm by the name a recipe gives it: a file of rollcall.learners, or module:Class from the user's
working directory. There is no list of algorithms to keep."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import rollcall.learners as learners
from rollcall.actors.import_path import import_object
from rollcall.cluster.errors import BadInput
from rollcall.deploy.settings import did_you_mean


def shipped_algorithms() -> list[str]:
    """The files of rollcall.learners that name an ALGORITHM; found by reading, not by importing."""
    names = []
    for module in pkgutil.iter_modules(learners.__path__):
        for folder in learners.__path__:
            path = Path(folder) / f"{module.name}.py"
            if path.is_file() and re.search(r"^ALGORITHM\b", path.read_text(encoding="utf-8"), re.MULTILINE):
                names.append(module.name)
    return sorted(set(names))


def find_algorithm(name: object) -> type[Any]:
    """The class of an algorithm: it has unit, corrects_policy_lag and Config.

    Raises:
      BadInput: when there is none of that name; the text does not say where the name came from.
    """
    shipped = shipped_algorithms()
    if not isinstance(name, str) or not name:
        raise BadInput(f"an algorithm is named by its file ({', '.join(shipped)}) or as module:Class")
    if ":" in name:
        found = import_object(name)
    elif name in shipped:
        found = importlib.import_module(f"rollcall.learners.{name}").ALGORITHM
    else:
        raise BadInput(f"unknown algorithm{did_you_mean(name, shipped) or '; shipped are ' + ', '.join(shipped)}")
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        raise BadInput(f"{name} is no algorithm: it has no attribute Config that is a pydantic model")
    if "name" not in config.model_fields:
        raise BadInput(f"{name} is no algorithm: its Config needs a field `name: str`")
    missing = [a for a in ("unit", "corrects_policy_lag", "prepare", "loss") if not hasattr(found, a)]
    if missing:
        raise BadInput(f"{name} is no algorithm: it lacks {', '.join(missing)} (see rollcall/learners/algorithm.py)")
    return found  # type: ignore[no-any-return]
