"""Finds what a recipe names: an algorithm among the files of rollcall.learners, a task among those of rollcall.actors,
or module:Class from the user's working directory. There is no list of either to keep."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, Field, create_model

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs import given
from rollcall.cluster.inputs.import_path import import_object
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.learners.declared import Declared


@dataclass(frozen=True)
class Plugin:
    """A kind of class that recipes name."""

    kind: str
    package: str  # where the shipped ones are, one a file
    variable: str  # the module variable that names the class
    needs: tuple[str, ...]  # attributes without which it is none
    protocol: str  # the file that says what they are


ALGORITHM = Plugin(
    "algorithm",
    "rollcall.learners.algorithms",
    "ALGORITHM",
    needs=("unit", "needs", "prepare", "minibatches", "loss"),
    protocol="rollcall/learners/algorithm.py",
)
DIRECT_METHOD = Plugin(
    "direct method",
    "rollcall.learners.algorithms",
    "DIRECT_METHOD",
    needs=("needs", "prepare", "minibatches", "loss"),
    protocol="rollcall/learners/algorithm.py",
)
OFFLINE_METHOD = Plugin(
    "method for a recorded set",
    "rollcall.learners.algorithms",
    "OFFLINE_METHOD",
    needs=("needs", "prepare", "minibatches", "loss"),
    protocol="rollcall/learners/algorithm.py",
)
SUPERVISED_METHOD = Plugin(
    "supervised method",
    "rollcall.learners.algorithms",
    "SUPERVISED_METHOD",
    needs=("unit", "needs", "prepare", "minibatches", "loss"),
    protocol="rollcall/learners/algorithm.py",
)
TABULAR = Plugin(
    "tabular method",
    "rollcall.learners.tabular.methods",
    "TABULAR",
    needs=("values", "begin", "step", "end", "arrays", "load"),
    protocol="rollcall/learners/tabular/action_values.py",
)
BANDIT = Plugin(
    "bandit method",
    "rollcall.learners.tabular.bandits",
    "BANDIT",
    needs=("choose", "learn", "arrays", "load"),
    protocol="rollcall/learners/tabular/test_bed.py",
)
TASK = Plugin(
    "task",
    "rollcall.actors.tasks",
    "TASK",
    needs=("rows", "judge", "environment", "demonstration"),
    protocol="rollcall/actors/tasks/text_task.py",
)


@lru_cache
def shipped(plugin: Plugin) -> Mapping[str, str]:
    """The modules of the package that name one, by their files' names, room after room, whatever rooms are in these;
    found by reading, not by importing."""
    found = {}
    for folder in map(Path, importlib.import_module(plugin.package).__path__):
        for path in sorted(folder.rglob("*.py"), key=lambda path: (path.relative_to(folder).parts[0], path.stem)):
            if re.search(rf"^{plugin.variable}\b", path.read_text(encoding="utf-8"), re.MULTILINE):
                parts = path.relative_to(folder).with_suffix("").parts
                found[path.stem] = ".".join((plugin.package, *parts))
    return found


def find(plugin: Plugin, name: object) -> type[Any]:
    """The class of that name, with its Config.

    Raises:
      BadInput: when there is none; the text does not say where the name came from.
    """
    kind, known = plugin.kind, shipped(plugin)
    if not isinstance(name, str) or not name:
        raise BadInput(f"{_a(kind)} is named by its file ({', '.join(known)}) or as module:Class")
    if ":" in name:
        found: Any = _with_own_name(import_object(name))
    elif name in known:
        found = getattr(importlib.import_module(known[name]), plugin.variable)
    elif plugin is ALGORITHM and name in shipped(OFFLINE_METHOD):
        raise BadInput("learns from a recorded set: give the recipe data.train=FILE (rollcall eval RUN --record FILE)")
    elif plugin is OFFLINE_METHOD and name in shipped(ALGORITHM):
        raise BadInput(
            f"learns from what actors do, not from a recorded set: leave out data, or use {', '.join(known)}"
        )
    else:
        raise BadInput(f"unknown {kind}{did_you_mean(name, known) or '; shipped are ' + ', '.join(known)}")
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        raise BadInput(f"{name} is no {kind}: it has no attribute Config that is a pydantic model")
    if "name" not in config.model_fields:
        raise BadInput(f"{name} is no {kind}: its Config needs a field `name: str`")
    made = getattr(found, "made", found)  # of what is no class itself, but says which class it makes
    missing = [attribute for attribute in plugin.needs if not hasattr(made, attribute)]
    if missing:
        raise BadInput(f"{name} is no {kind}: it lacks {', '.join(missing)} (see {plugin.protocol})")
    return found  # type: ignore[no-any-return]


def declared(plugin: Plugin, name: object) -> type[Any] | Declared:
    """What a recipe's reader needs of the class of that name: its Config, and of an algorithm `needs` and `unit`. Of
    what is shipped, without the class itself where that would import torch.

    Raises:
      BadInput: as `find`.
    """
    module = shipped(plugin).get(name) if isinstance(name, str) else None
    if module is None or find_spec(f"{module}_config") is None:
        return find(plugin, name)
    found: Declared = importlib.import_module(f"{module}_config").DECLARED
    return found


def _with_own_name(found: Any) -> Any:
    """A class that has its settings from the one it derives from, with that one's name alone allowed: it gets settings
    of its own, which are the same but for the name."""
    inherited = getattr(found, "Config", None)
    if not isinstance(found, type) or "Config" in vars(found) or not isinstance(inherited, type):
        return found
    if issubclass(inherited, BaseModel) and get_origin(getattr(inherited.model_fields.get("name"), "annotation", 0)):
        about = inherited.model_fields["name"].description
        name: Any = (str, Field(default=inherited.model_fields["name"].default, description=about))
        found.Config = create_model(  # type: ignore[attr-defined]
            f"{found.__name__}Config", __base__=inherited, __module__=found.__module__, name=name
        )
    return found


def modules_of(*names: str) -> tuple[str, ...]:
    """The modules of the user's own among names such as module:Class. Objects that were given are in none."""
    return tuple(name.partition(":")[0] for name in names if ":" in name and given.named_in(name) is None)


def is_language(algorithm: type[Any] | Declared) -> bool:
    """Whether an algorithm learns from tokens; the others learn from env steps."""
    return bool(algorithm.unit == "prompt")


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
