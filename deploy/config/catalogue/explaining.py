"""Which settings there are, over all kinds of runs and all that is shipped, and what one of them means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rollcall.deploy.config import plugins
from rollcall.deploy.config.catalogue.explanation import Explanation, explain, together, wanted
from rollcall.deploy.config.catalogue.known_settings import explained
from rollcall.deploy.config.kind_settings import all_kinds, checked, kind_of_settings, settings_of
from rollcall.deploy.config.recipe.root_config import plugin_name_of
from rollcall.deploy.config.settings import KeyPath, Settings
from rollcall.deploy.config.validation import setting_fields

_Known = tuple[KeyPath, tuple[FieldInfo, str]]  # a setting, and what has it


def explanations(key: str, recipe: str | Path | None = None, overrides: Iterable[str] = ()) -> list[Explanation]:
    """What `key` means: a dotted setting, its last word, a section, or what another framework calls it. With a recipe,
    of that one, with the value that it has there and where it was written; else of all that have it.

    Raises:
      BadInput: when there is no such setting, or the recipe is refused.
    """
    if recipe is None:
        return explained(key)
    settings = settings_of(recipe, overrides)
    config = checked(settings)
    known = list(_of_recipe(settings))
    return [explain(path, info, of=[has], settings=settings, config=config) for path, (info, has) in wanted(key, known)]


def all_settings() -> str:
    """What known_settings.json has to hold."""
    found = together(explain(path, info, of=[has]) for path, (info, has) in _of_all())
    renamed = {kind.name: [".".join(path) for path in kind.renamed] for kind in all_kinds() if kind.renamed}
    lines = ",\n".join(f"  {json.dumps(one.as_json())}" for one in found)
    return f'{{"renamed": {json.dumps(renamed)}, "settings": [\n{lines}\n]}}\n'


def _of_all() -> Iterator[_Known]:
    for kind in reversed(all_kinds()):
        for path, info in setting_fields(kind.config, {}).items():
            if path[0] not in kind.config.PLUGINS or len(path) == 1:
                yield path, (info, f"{kind.name} recipes")
        for section, plugin in kind.config.PLUGINS.items():
            for name in plugins.shipped(plugin):
                found = plugins.declared(plugin, name)
                if section == "algorithm" and not kind.fits(found):
                    continue
                for path, info in setting_fields(found.Config, {}).items():
                    yield (section, *path), (info, f"{section}={name}")


def _of_recipe(settings: Settings) -> Iterator[_Known]:
    kind = kind_of_settings(settings.tree)
    models: dict[str, type[BaseModel]] = dict(kind.sections(settings))
    for section, plugin in kind.config.PLUGINS.items():
        if (written := settings.tree.get(section)) is not None:
            models[section] = plugins.declared(plugin, plugin_name_of(written)).Config
    for path, info in setting_fields(kind.config, models).items():
        yield path, (info, settings.source or f"{kind.name} recipes")
