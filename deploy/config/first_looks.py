"""What a recipe names and this machine lacks, as far as it shows without torch: envs, packages, directories of models.
`rollcall config` does not look: a recipe may be for another machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rollcall.actors.engine.settings import check_installed
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.sources import find_env
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.model_names import missing_directory
from rollcall.deploy.config.kind_settings import checked, settings_of
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.config.recipe.offline_config import OfflineConfig
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.config.recipe.tabular_config import TabularRunConfig
from rollcall.deploy.config.settings import KeyPath
from rollcall.deploy.config.validation import refused


def look(recipe: str | Path, overrides: Iterable[str] = ()) -> None:
    """At a shipped recipe's name or a YAML file, and at what it names.

    Raises:
      BadInput: one line for each thing that is wrong.
    """
    settings = settings_of(recipe, overrides)
    config, problems = checked(settings), []
    if isinstance(config, RunConfig | OfflineConfig | TabularRunConfig):
        problems = look_for_env(config.env)
    elif isinstance(config, LanguageConfig):
        problems = look_for_model(config)
    if problems:
        raise refused(settings, problems, config)


def look_for_env(env: EnvConfig) -> list[Problem]:
    """Whether there is an env of that name; it is not made."""
    try:
        find_env(env.id)
    except BadInput as error:
        return [named(str(error), "env", default=("env", "id"), own=f"env {env.id!r} ")]
    return []


def look_for_model(config: LanguageConfig) -> list[Problem]:
    """Whether the model's directory is there, and vLLM.

    Raises:
      BadInput: when vLLM is missing, or of an unknown version.
    """
    check_installed()
    missing = missing_directory(config.policy.model)
    return [Problem(("policy", "model"), missing)] if missing and config.policy.init_from is None else []


def named(text: str, section: str, *, default: KeyPath, own: str = "") -> Problem:
    """A component's own words: `setting=value: what is wrong`, or about the env as a whole."""
    match = re.match(rf"(?:{section}\.)?(\w+)=[^:,]*[:,] (?:but )?", text)
    if match:
        return Problem((section, match.group(1)), text[match.end() :])
    return Problem(default, text.removeprefix(own).removeprefix(own.replace("'", "")))
