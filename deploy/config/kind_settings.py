"""What recipes of one kind of run have, and whether the settings of a recipe are right, as far as that shows without
torch, environments or GPUs. Each kind's are in config/kinds; whoever asks for one kind imports no other."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rollcall.deploy.config.catalogue import schema
from rollcall.deploy.config.claims import CLAIMS, kind_named
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.reading import read_settings
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.config.settings import KeyPath, Settings
from rollcall.deploy.config.validation import refused, validated
from rollcall.learners.declared import Declared


@dataclass(frozen=True)
class KindSettings:
    """Of one kind of run. config/kinds/NAME.py has it as SETTINGS."""

    name: str  # by which config/claims.py says what recipes of it look like
    config: type[RootConfig]
    problems: Callable[[Any], list[Problem]] = lambda config: []  # settings that contradict each other
    # Whether an algorithm that is shipped is for this kind.
    fits: Callable[[type[Any] | Declared], bool] = lambda algorithm: False
    sections: Callable[[Settings], Mapping[str, type[BaseModel]]] = lambda settings: {}  # whose model depends on them
    renamed: Mapping[KeyPath, KeyPath] = field(default_factory=dict)  # settings that had another name: old -> new path

    def read(self, settings: Settings) -> RootConfig:
        """The configuration of a recipe of this kind.

        Raises:
          BadInput: one line for each thing that is wrong.
        """
        return validated(settings, self.config, self.sections(settings))


def settings_of_kind(name: str) -> KindSettings:
    found: KindSettings = importlib.import_module(f"rollcall.deploy.config.kinds.{name}").SETTINGS
    return found


def all_kinds() -> list[KindSettings]:
    """In the order in which a recipe is asked whose it is."""
    return [settings_of_kind(name) for name in CLAIMS]


def kind_of_settings(tree: Mapping[str, Any]) -> KindSettings:
    """Of a recipe, or of a run's config.yaml."""
    return settings_of_kind(kind_named(tree))


def settings_of(
    recipe: str | Path | Settings, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> Settings:
    """A shipped recipe's name or a YAML file, with `key=value` overrides and values from Python: not yet checked.

    Raises:
      BadInput: when it cannot be read.
    """
    return read_settings(recipe, overrides, values, renamed=lambda tree: kind_of_settings(tree).renamed)


def checked(settings: Settings) -> RootConfig:
    """The configuration, what is `auto` in it decided. Neither the env, the model nor the machine is looked at.

    Raises:
      BadInput: one line for each thing that is wrong.
    """
    kind = kind_of_settings(settings.tree)
    config = kind.read(settings).resolved()
    if problems := kind.problems(config):
        raise refused(settings, problems, config)
    return config


def checked_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> RootConfig:
    """Of a shipped recipe's name or a YAML file. Raises BadInput: as settings_of and checked."""
    return checked(settings_of(recipe, overrides))


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe, of whatever kind, with the settings of all that is shipped."""
    return schema.json_schema((kind.config, kind.fits) for kind in reversed(all_kinds()))
