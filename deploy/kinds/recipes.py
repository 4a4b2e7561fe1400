"""From a recipe, or from a run's directory, to its kind and configuration. A file is read once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.claims import SUPERVISED as SFT_NAME
from rollcall.deploy.config.kind_settings import checked, settings_of
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.config.settings import COMMAND_LINE, NO_PART_OF_THE_RESULT, Settings, dotted_values
from rollcall.deploy.config.validation import refused
from rollcall.deploy.kinds.kind import RunKind, StoredRun
from rollcall.deploy.kinds.language.supervised import SUPERVISED
from rollcall.deploy.kinds.preferences.direct import DIRECT
from rollcall.deploy.kinds.preferences.reward_model import REWARD_MODEL
from rollcall.deploy.kinds.registry import KINDS, kind_of
from rollcall.deploy.rundir.directories import find_checkpoint
from rollcall.deploy.rundir.earlier_runs import read_run


@dataclass(frozen=True)
class Recipe:
    """A run that may begin."""

    kind: RunKind
    config: RootConfig  # of the class `kind.config`
    over: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # written over it: key -> (its value, this one)
    chosen: Mapping[str, Any] = field(default_factory=dict)  # written anywhere, and no default: key -> value


def load_recipe(
    recipe: str | Path | Settings, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> Recipe:
    """A shipped recipe's name or a YAML file, with `key=value` overrides and values from Python.

    Raises:
      BadInput: one line for each thing that is wrong.
    """
    return recipe_of(settings_of(recipe, overrides, values))


def recipe_of(settings: Settings) -> Recipe:
    """As load_recipe, of settings that were read already."""
    kind, config = kind_of(settings.tree), checked(settings)
    if problems := kind.unfit(config):
        raise refused(settings, problems, config)
    return Recipe(kind, config, settings.over, _chosen(settings, config))


def _chosen(settings: Settings, config: RootConfig) -> dict[str, Any]:
    """The settings that somebody wrote which are not what they are by default, by dotted key."""
    given = dotted_values(config.model_dump(mode="json", exclude_defaults=True, exclude=set(NO_PART_OF_THE_RESULT)))
    return {key: value for key, value in given.items() if value != {} and settings.has(tuple(key.split(".")))}


def load_supervised(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The warm start of a language recipe, as a run of its own.

    Raises:
      BadInput: as load_recipe, and for a recipe without a task or a warm start.
    """
    settings = settings_of(recipe, overrides)
    found = recipe_of(settings)
    if found.kind.policy != SUPERVISED.policy:
        raise BadInput(
            f"{recipe}: a control recipe has no demonstrations to imitate: rollcall sft needs one with a task"
        )
    if found.kind is not SUPERVISED:
        settings.set(("algorithm",), {"name": SFT_NAME}, COMMAND_LINE)
        found = recipe_of(settings)
    return found


def load_reward_model(settings: Settings, source: str) -> Recipe:
    """The recipe of a reward model, called `source`.

    Raises:
      BadInput: as load_recipe, and for recipes of other kinds.
    """
    kind = kind_of(settings.tree)
    if kind is DIRECT:
        raise BadInput(f"{source}: a recipe with an algorithm trains a policy: rollcall train {source}")
    if kind is not REWARD_MODEL:
        raise BadInput(f"{source}: no recipe of a reward model: it has no section data: rollcall train runs it")
    return recipe_of(settings)


def load_config(
    recipe: str | Path | Settings, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> RootConfig:
    """The configuration alone, as load_recipe."""
    return load_recipe(recipe, overrides, values).config


def load_run(run_directory: Path) -> StoredRun:
    """A run that was begun, with its settings as this release knows them.

    Raises:
      BadInput: one line for each thing that is wrong.
    """
    settings, config_hash = read_run(run_directory)
    return stored_run(run_directory, settings, config_hash)


def stored_run(run_directory: Path, settings: Settings, config_hash: str) -> StoredRun:
    """As load_run, of a config.yaml that was read already."""
    settings = settings_of(settings)
    written = copy.deepcopy(settings)
    recipe = recipe_of(settings)
    return StoredRun(recipe.kind, recipe.config, run_directory, config_hash, written=written)


def open_run(target: str | Path) -> StoredRun:
    """The run of RUN_OR_CHECKPOINT, and the checkpoint where one is named.

    Raises:
      BadInput: when it is neither.
    """
    run_directory, checkpoint = find_checkpoint(target)
    return replace(load_run(run_directory), checkpoint=checkpoint)


def kind_of_config(config: RootConfig) -> RunKind:
    """Of a configuration that was made in Python.

    Raises:
      BadInput: when it is none.
    """
    for kind in KINDS:
        if type(config) is kind.config:
            return kind
    raise BadInput(f"{type(config).__name__} is no configuration of a run")
