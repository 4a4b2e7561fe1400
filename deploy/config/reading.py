"""Reads a recipe and what is written over it, on the command line or in Python, into one tree of settings. Knows how a
setting may be written shorter; whether it is right is validation.py's to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs import given
from rollcall.deploy.config.learner_settings import write_out_kinds, written_over
from rollcall.deploy.config.recipe.reward_config import by_name
from rollcall.deploy.config.settings import (
    CALLER,
    COMMAND_LINE,
    NO_PART_OF_THE_RESULT,
    KeyPath,
    Settings,
    dotted_values,
    flat_values,
    parse_override,
    read_recipe,
    recipe_name,
)

# What may be a class or function that no other process can import: it is sent to those of the run.
_TAKE_OBJECTS = {(section, *rest) for section in ("env", "task", "algorithm") for rest in ((), ("id",), ("name",))}
_ELSEWHERE = {"reward": "a reward runs in the reward service, a process of its own that imports it"}
_TOTALS = ("total_env_steps", "total_learner_steps", "total_episodes")


def read_settings(
    recipe: str | Path | Settings,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    *,
    renamed: Callable[[Mapping[str, Any]], Mapping[KeyPath, KeyPath]] = lambda tree: {},
) -> Settings:
    """A recipe with what was written over it, not yet checked. `renamed`: settings that had other names, old -> new, in
    recipes with such keys.

    Raises:
      BadInput: when it cannot be read.
    """
    settings = recipe if isinstance(recipe, Settings) else read_recipe(recipe)
    if settings.tree.get("name") is None and not isinstance(recipe, Settings):
        settings.tree["name"] = recipe_name(recipe)
    for section, key in (("env", "id"), ("algorithm", "name"), ("task", "name")):
        value = settings.tree.get(section)
        if isinstance(value, str):
            settings.set((section,), {key: value}, settings.origins[section,])
    write_out_kinds(settings)
    if isinstance(settings.tree.get("reward"), str):
        settings.set(("reward",), by_name(settings.tree["reward"]), settings.origins["reward",])
    written = [(*parse_override(text), COMMAND_LINE) for text in overrides]
    written += [(path, _named_object(path, value), CALLER) for path, value in flat_values(values or {})]
    written.sort(key=lambda item: item[0] != ("policy", "init_from"))  # before what is written of a warm start after it
    names = renamed(settings.tree)
    settings.rename(names)
    of_recipe = dotted_values(settings.tree)
    for path, value, origin in written:
        _write(settings, names.get(path, path), value, origin)
    settings.rename(names)  # what came in a section
    totals = {path[0] for path, _, _ in written if path[0] in _TOTALS}
    if len(totals) == 1:  # whoever says how long the run is says it instead of the recipe
        for name in set(_TOTALS) - totals:
            settings.tree.pop(name, None)
    settings.over = _changed(of_recipe, dotted_values(settings.tree)) if of_recipe else {}
    return settings


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """None: not there. Of what is no part of the result nothing is said: a url may hold a password."""
    keys = [key for key in dict.fromkeys([*before, *after]) if key.partition(".")[0] not in NO_PART_OF_THE_RESULT]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _named_object(path: KeyPath, value: Any) -> Any:
    """What a recipe can hold: of a class or a function its name. One that has no name that others can import is kept,
    and called by a name of ours.

    Raises:
      BadInput: for any other object, and where what is called there has to be imported.
    """
    if value is None or isinstance(value, (str, bool, int, float, list, tuple, Mapping, Path, BaseModel)):
        return value
    if hasattr(value, "tolist") and not isinstance(value, type):
        return value.tolist()
    setting = ".".join(path)
    if not callable(value) or not hasattr(value, "__qualname__"):
        made = f"give what makes it, a class or a function, not a {type(value).__name__}"
        raise BadInput(f"{setting} ({CALLER}): a recipe holds names and numbers: {made}")
    named = given.name_of(value, kept_as=path[0])
    if given.named_in(named) is None or path in _TAKE_OBJECTS:
        return named
    name = value.__qualname__
    own = name.split(".")[-1] if name.split(".")[-1].isidentifier() else "name"
    why = _ELSEWHERE.get(path[0], "it is called in processes that cannot import it")
    remedy = f"put it at the top of a module, my_module.py, and give that: {setting}='my_module:{own}'"
    raise BadInput(f"{setting} ({CALLER}): is {name} of {value.__module__}, and {why}: {remedy}")


def _write(settings: Settings, path: KeyPath, value: Any, origin: str) -> None:
    """`env=NAME` keeps the recipe's other env settings, but not the arguments of the env it replaces; `algorithm=NAME`
    starts from that algorithm's defaults, `task=NAME` and `reward=NAME` likewise, and a scorer of another kind.
    `policy.init_from=RUN` takes the place of the recipe's model and warm start."""
    of_scorer = path[:2] == ("reward", "scorer") and path[-1] == "kind"
    names = (("algorithm", "name"), ("task", "name"), ("model", "kind"))
    if (of_scorer or path in names) and settings.get(path) not in (None, value):
        settings.set(path[:-1], {}, origin)
    if written_over(settings, path, value, origin):
        return
    if path == ("reward",) and isinstance(value, str):
        settings.set(path, by_name(value), origin)
    elif path in (("algorithm",), ("task",)) and isinstance(value, str):
        settings.set(path, {"name": value}, origin)
    elif path == ("env",) and isinstance(value, str):
        section = settings.tree.get("env")
        if isinstance(section, dict) and section.get("id") != value:
            section.pop("kwargs", None)
        elif not isinstance(section, dict):
            settings.set(path, {}, origin)
        settings.set(("env", "id"), value, origin)
    else:
        settings.set(path, value, origin)
        if path == ("policy", "init_from") and value is not None:  # in place of the recipe's own model and warm start
            for name in ("model", "tiny", "warm_start"):
                settings.tree["policy"].pop(name, None)
