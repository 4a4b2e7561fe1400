"""Which settings there are, over all kinds of runs and all that is shipped, from a file that is generated from the
models that hold them. So a slip of the pen is answered, and a setting explained, before anything that they belong to is
imported; what the models alone can tell is validation.py's."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.catalogue.explanation import Explanation, wanted
from rollcall.deploy.config.claims import algorithm_named, kind_named
from rollcall.deploy.config.settings import COMMAND_LINE, KeyPath, Settings, parse_override, read_recipe
from rollcall.deploy.config.wording import line_about, nearest_key

FILE = Path(__file__).with_name("known_settings.json")  # make generate writes it
_NAMED = {"env": "id", "algorithm": "name", "task": "name"}  # sections that may be written as a name alone
_SHORT = {"optimizer_eps", "weight_decay", "warmup_steps", "anneal_learning_rate"}  # of learner's sections


@dataclass(frozen=True)
class _Catalogue:
    settings: tuple[tuple[KeyPath, Explanation], ...]
    by_owner: Mapping[str, tuple[KeyPath, ...]]  # of "control recipes", "algorithm=ppo", ...
    renamed: Mapping[str, tuple[KeyPath, ...]]  # kind -> settings that had another name


@lru_cache
def _catalogue() -> _Catalogue:
    content = json.loads(FILE.read_text(encoding="utf-8"))
    settings, by_owner = [], dict[str, list[KeyPath]]()
    for one in content["settings"]:
        explanation = Explanation(**{**one, "elsewhere": tuple(one["elsewhere"])})
        path = tuple(explanation.setting.split("."))
        settings.append((path, explanation))
        for owner in explanation.of.split(", "):
            by_owner.setdefault(owner, []).append(path)
    renamed = {kind: tuple(tuple(name.split(".")) for name in names) for kind, names in content["renamed"].items()}
    return _Catalogue(tuple(settings), {owner: tuple(paths) for owner, paths in by_owner.items()}, renamed)


def explained(key: str) -> list[Explanation]:
    """What `key` means, of all recipes that have it. Raises BadInput: as `explanation.wanted`."""
    return [one for _, one in wanted(key, _catalogue().settings)]


def refuse_unknown(recipe: str | Path, overrides: Iterable[str]) -> None:
    """Looks at no more than the names: what it lets pass may still be wrong.

    Raises:
      BadInput: one line for each setting that no recipe of this kind has; where there is no such recipe, or it or an
        override cannot be read.
    """
    settings = read_recipe(recipe)
    try:
        _write_names_out(settings)
        for text in overrides:
            _write(settings, *parse_override(text))
    except _NotToldHere:
        return
    known = _known_to(settings.tree)
    unknown = sorted(_unknown(settings.tree, (), known), key=lambda path: path[0] not in _NAMED)
    if unknown:
        lines = [line_about(settings, path, f"unknown key{nearest_key(path, known)}") for path in unknown]
        raise BadInput("\n".join(lines))


class _NotToldHere(Exception):
    """Whoever reads the models has to say what is wrong."""


def _write_names_out(settings: Settings) -> None:
    for section, tag in _NAMED.items():
        if isinstance(settings.tree.get(section), str):
            settings.tree[section] = {tag: settings.tree[section]}


def _write(settings: Settings, path: KeyPath, value: Any) -> None:
    """Another algorithm or task begins from its own settings."""
    if path[0] in _NAMED and len(path) == 1 and isinstance(value, str):
        path = (path[0], _NAMED[path[0]])
    if path in (("algorithm", "name"), ("task", "name")) and settings.get(path) != value:
        settings.tree[path[0]] = {}
    try:
        settings.set(path, value, COMMAND_LINE)
    except BadInput:  # something is written into what is no section, or a section that is written short
        raise _NotToldHere from None


def _known_to(tree: Mapping[str, Any]) -> dict[KeyPath, Any]:
    """The settings of such a recipe, in their order; of sections that this file does not know nothing but the name."""
    catalogue, kind = _catalogue(), kind_named(tree)
    known: dict[KeyPath, Any] = {}
    for path in catalogue.by_owner.get(f"{kind} recipes", ()):
        known[path] = None
        if len(path) == 1 and isinstance(section := tree.get(path[0]), Mapping):
            name = algorithm_named(tree) if path == ("algorithm",) else section.get("name")
            known |= dict.fromkeys(catalogue.by_owner.get(f"{path[0]}={name}", ()))
    return known


def _unknown(section: Mapping[str, Any], path: KeyPath, known: Collection[KeyPath]) -> Iterator[KeyPath]:
    for key, value in section.items():
        here = (*path, key)
        if here in known:
            is_section = any(other[: len(here)] == here and other != here for other in known)
            of_kinds = (*here, "kind") in known  # which decide what it has
            if isinstance(value, Mapping) and is_section and not of_kinds:
                yield from _unknown(value, here, known)
        elif not (path == ("learner",) and key in _SHORT) and not _was_renamed(here):
            yield here


def _was_renamed(path: KeyPath) -> bool:
    return any(path in paths for paths in _catalogue().renamed.values())
