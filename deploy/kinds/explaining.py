"""Which settings there are, over all kinds of runs and all that is shipped, and what one of them means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.deploy.config import plugins
from rollcall.deploy.config.explanation import Explanation, explain
from rollcall.deploy.config.other_names import settings_called
from rollcall.deploy.config.root_config import plugin_name_of
from rollcall.deploy.config.settings import COMMAND_LINE, KeyPath, Settings
from rollcall.deploy.config.validation import setting_fields
from rollcall.deploy.kinds.recipes import recipe_of, settings_of
from rollcall.deploy.kinds.registry import KINDS, kind_of

_Known = tuple[KeyPath, FieldInfo, str]  # a setting, and what has it


def explanations(key: str, recipe: str | Path | None = None, overrides: Iterable[str] = ()) -> list[Explanation]:
    """What `key` means: a dotted setting, its last word, a section, or what another framework calls it. With a recipe,
    of that one, with the value that it has there and where it was written; else of all that have it.

    Raises:
      BadInput: when there is no such setting, or the recipe is refused.
    """
    if recipe is None:
        return _together(explain(path, info, of=[has]) for path, info, has in _wanted(key, list(_of_all())))
    settings = settings_of(recipe, overrides)
    config = recipe_of(settings).config
    known = list(_of_recipe(settings))
    return [explain(path, info, of=[has], settings=settings, config=config) for path, info, has in _wanted(key, known)]


def _of_all() -> Iterator[_Known]:
    for kind in reversed(KINDS):
        for path, info in setting_fields(kind.config, {}).items():
            if path[0] not in kind.config.PLUGINS or len(path) == 1:
                yield path, info, f"{kind.name} recipes"
        for section, plugin in kind.config.PLUGINS.items():
            for name in plugins.shipped(plugin):
                found = plugins.find(plugin, name)
                if section == "algorithm" and not kind.fits(found):
                    continue
                for path, info in setting_fields(found.Config, {}).items():
                    yield (section, *path), info, f"{section}={name}"


def _of_recipe(settings: Settings) -> Iterator[_Known]:
    kind = kind_of(settings.tree)
    models: dict[str, type[BaseModel]] = dict(kind.sections(settings))
    for section, plugin in kind.config.PLUGINS.items():
        if (written := settings.tree.get(section)) is not None:
            models[section] = plugins.find(plugin, plugin_name_of(written)).Config
    for path, info in setting_fields(kind.config, models).items():
        yield path, info, settings.source or f"{kind.name} recipes"


def _wanted(key: str, known: list[_Known]) -> list[_Known]:
    """Raises BadInput: where nothing is called so, or much."""
    path = tuple(key.strip().split("."))
    rules: tuple[Callable[[KeyPath], bool], ...] = (
        lambda own: own == path,
        lambda own: own[: len(path)] == path,  # a section: all that is in it
        lambda own: own[-len(path) :] == path,
    )
    for rule in rules:
        found = [entry for entry in known if rule(entry[0])]
        if found:
            inside = [entry for entry in known if entry[0][: len(path)] == path and entry[0] != path]
            return inside if inside and all(entry[0] == path for entry in found) else found
    names = {".".join(entry[0]) for entry in known}
    for setting in settings_called(path[-1]):
        if setting in names:
            return [entry for entry in known if ".".join(entry[0]) == setting]
    words: Mapping[str, str] = {name.rpartition(".")[2]: name for name in names}
    hint = did_you_mean(key, names) or did_you_mean(path[-1], words) or "; rollcall config --schema has all of them"
    raise BadInput(f"--explain {key} ({COMMAND_LINE}): there is no such setting{hint}")


def _together(found: Iterable[Explanation]) -> list[Explanation]:
    """One for all that differ in nothing but who has it."""
    merged: dict[Explanation, list[str]] = {}
    for one in found:
        merged.setdefault(replace(one, of=""), []).append(one.of)
    return [replace(one, of=", ".join(dict.fromkeys(who))) for one, who in merged.items()]
