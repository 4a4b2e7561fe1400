"""Reads a recipe and its overrides into a RunConfig, and says in one line each what is wrong with them: the dotted
path, the value, where it was written, and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Protocol, TypeVar, cast

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.deploy.config import plugins
from rollcall.deploy.config.checks import check_env, check_settings
from rollcall.deploy.config.language_checks import check_language
from rollcall.deploy.config.language_config import LanguageConfig
from rollcall.deploy.config.plugins import Plugin
from rollcall.deploy.config.reward_config import by_name
from rollcall.deploy.config.run_config import CommonConfig, RunConfig, plugin_name_of
from rollcall.deploy.config.settings import (
    CALLER,
    COMMAND_LINE,
    KeyPath,
    Settings,
    flat_values,
    parse_override,
    read_recipe,
    recipe_name,
)
from rollcall.deploy.rundir.earlier_runs import read_run

__all__ = ["AnyConfig", "LanguageConfig", "RunConfig", "json_schema", "load_config", "load_run"]

AnyConfig = RunConfig | LanguageConfig

_PLAINER = {  # pydantic's words where they are JSON's and not the user's
    "string_pattern_mismatch": "must be letters, digits, '.', '_' and '-', and begin with a letter or a digit",
    "tuple_type": "must be a list, such as [64, 64]",
    "list_type": "must be a list, such as [64, 64]",
    "model_type": "must be a section with settings inside",
    "dict_type": "must be a section with settings inside",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
}
_TOTALS = ("total_env_steps", "total_learner_steps")


def load_config(
    recipe: str | Path | Settings, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> AnyConfig:
    """The configuration of a shipped recipe's name or a YAML file, with `key=value` overrides and values from Python.

    Raises:
      BadInput: one line for each thing that is wrong.
    """
    settings = read_settings(recipe, overrides, values)
    whole: type[RunConfig | LanguageConfig] = LanguageConfig if "task" in settings.tree else RunConfig
    config: AnyConfig = validated(settings, whole).resolved()
    problems = check_language(config) if isinstance(config, LanguageConfig) else check_settings(config)
    if isinstance(config, RunConfig):
        problems = problems or check_env(config)
    if problems:
        lines = [_line(settings, p.path, p.text, config=config) for p in problems]
        raise BadInput("\n".join(dict.fromkeys(lines)))
    return config


def load_run(run_directory: Path, overrides: Iterable[str] = ()) -> tuple[AnyConfig, str]:
    """(the configuration of a run that was begun, the hash of its config.yaml as it was written).

    Raises:
      BadInput: one line for each thing that is wrong.
    """
    settings, config_hash = read_run(run_directory)
    return load_config(settings, overrides), config_hash


def read_settings(
    recipe: str | Path | Settings, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> Settings:
    """A recipe with what was written over it, not yet checked. Raises BadInput: when it cannot be read."""
    settings = recipe if isinstance(recipe, Settings) else read_recipe(recipe)
    if settings.tree.get("name") is None and not isinstance(recipe, Settings):
        settings.tree["name"] = recipe_name(recipe)
    for section, key in (("env", "id"), ("algorithm", "name"), ("task", "name")):
        value = settings.tree.get(section)
        if isinstance(value, str):
            settings.set((section,), {key: value}, settings.origins[section,])
    if isinstance(settings.tree.get("reward"), str):
        settings.set(("reward",), by_name(settings.tree["reward"]), settings.origins["reward",])
    written = [(*parse_override(text), COMMAND_LINE) for text in overrides]
    written += [(path, _named_object(path, value), CALLER) for path, value in flat_values(values or {})]
    written.sort(key=lambda item: item[0] != ("policy", "init_from"))  # before what is written of a warm start after it
    for path, value, origin in written:
        _write(settings, path, value, origin)
    totals = {path[0] for path, _, _ in written if path[0] in _TOTALS}
    if len(totals) == 1:  # whoever says how long the run is says it instead of the recipe
        settings.tree.pop(next(name for name in _TOTALS if name not in totals), None)
    return settings


def _named_object(path: KeyPath, value: Any) -> Any:
    """What a recipe can hold. Processes on other machines make the object anew, from its name.

    Raises:
      BadInput: for a class, a function or an object, with the name to be given instead.
    """
    if value is None or isinstance(value, (str, bool, int, float, list, tuple, Mapping, Path, BaseModel)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    setting = ".".join(path)
    if not callable(value) or not hasattr(value, "__qualname__"):
        made = f"give the name of what makes it, {setting}='module:name', not a {type(value).__name__}"
        raise BadInput(f"{setting} ({CALLER}): a recipe holds names and numbers: {made}")
    module, name = value.__module__, value.__qualname__
    if module != "__main__" and name.isidentifier():
        raise BadInput(f"{setting} ({CALLER}): is {name} itself: give its name, {setting}='{module}:{name}'")
    own = name.split(".")[-1] if name.split(".")[-1].isidentifier() else "name"
    remedy = f"put it at the top of a module, my_module.py, and give its name, {setting}='my_module:{own}'"
    raise BadInput(f"{setting} ({CALLER}): is {name} of {module}, which other processes cannot import: {remedy}")


def _write(settings: Settings, path: KeyPath, value: Any, origin: str) -> None:
    """`env=NAME` keeps the recipe's other env settings, but not the arguments of the env it replaces; `algorithm=NAME`
    starts from that algorithm's defaults, `task=NAME` and `reward=NAME` likewise, and a scorer of another kind.
    `policy.init_from=RUN` takes the place of the recipe's model and warm start."""
    of_scorer = path[:2] == ("reward", "scorer") and path[-1] == "kind"
    if (of_scorer or path in (("algorithm", "name"), ("task", "name"), ("model", "kind"))) and _value(
        settings, path
    ) not in (None, value):
        settings.set(path[:-1], {}, origin)
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


def _value(settings: Settings, path: KeyPath) -> Any:
    try:
        return settings.value(path)
    except KeyError:
        return None


class _Sectioned(Protocol):
    """A configuration some of whose sections are a plug-in's."""

    PLUGINS: ClassVar[Mapping[str, Plugin]]


_Config = TypeVar("_Config", bound=_Sectioned)


def validated(
    settings: Settings, whole: type[_Config], sections: Mapping[str, type[BaseModel]] | None = None
) -> _Config:
    """The settings as a configuration of the class `whole`. `sections` are of models that depend on the settings, as
    those of plug-ins do, which are found here.

    Raises:
      BadInput: one line for each thing that is wrong.
    """
    lines: list[str] = []
    models: dict[str, type[BaseModel]] = dict(sections or {})
    for section, plugin in whole.PLUGINS.items():
        written = settings.tree.get(section)
        if written is None:
            continue
        try:
            models[section] = plugins.find(plugin, plugin_name_of(written)).Config
        except BadInput as error:
            lines.append(_line(settings, (section, "name"), str(error)))
    fields = _fields(cast(type[BaseModel], whole), models)
    for section, model in models.items():
        try:
            model.model_validate_json(_json(settings.tree[section]), strict=True)
        except ValidationError as error:
            lines += _explain(error, settings, fields, prefix=(section,))
    config: _Config | None = None
    told = {section for section in (*whole.PLUGINS, *models) if settings.tree.get(section) is not None}
    try:
        config = cast(Any, whole).model_validate_json(_json(settings.tree), strict=True)
    except ValidationError as error:
        lines += _explain(error, settings, fields, skip=told)
    if config is None or lines:
        raise BadInput("\n".join(dict.fromkeys(lines)))
    return config


def _json(value: Any) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """What Python gives in place of JSON's own: a section as its model, numpy's numbers and arrays, a path."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _fields(model: type[BaseModel], sections: Mapping[str, type[BaseModel]]) -> dict[KeyPath, FieldInfo]:
    """Every setting there is, by path; `sections` are the models of plug-ins."""
    found: dict[KeyPath, FieldInfo] = {}
    for name, info in model.model_fields.items():
        found[name,] = info
        inner: Any = sections.get(name, info.annotation)
        if isinstance(inner, UnionType):  # a section that may be left out
            inner = next((part for part in inner.__args__ if part is not type(None)), None)
        if isinstance(inner, type) and issubclass(inner, BaseModel) and inner is not BaseModel:
            found |= {(name, *path): below for path, below in _fields(inner, {}).items()}
    return found


def _explain(
    error: ValidationError,
    settings: Settings,
    fields: Mapping[KeyPath, FieldInfo],
    *,
    prefix: KeyPath = (),
    skip: Collection[str] = (),
) -> list[str]:
    lines = []
    for item in error.errors(include_url=False):
        path = _written_path(settings, (*prefix, *(str(part) for part in item["loc"])))
        if path and path[0] in skip:
            continue
        if item["type"] == "default_factory_not_called":
            continue  # follows from another error
        kind, text = item["type"], item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        text = _PLAINER.get(kind, text)
        if kind == "extra_forbidden" and settings.made_by and settings.origin(path).startswith(settings.source):
            text = f"this version does not know this setting: use the one that made the run ({settings.made_by})"
            lines.append(_line(settings, path, text))
        elif kind == "extra_forbidden":
            lines.append(_line(settings, path, f"unknown key{_nearest_key(path, fields)}"))
        elif kind == "missing":
            about = fields[path].description if path in fields else None
            lines.append(f"{settings.source}: {'.'.join(path)} is missing{f' ({about})' if about else ''}")
        elif kind == "json_invalid":
            lines.append(f"{settings.source}: {text}")
        else:
            if kind == "union_tag_invalid":
                path, expected = (*path, "kind"), item["ctx"]["expected_tags"]
                text = f"must be one of {expected}" + did_you_mean(item["ctx"]["tag"], re.findall(r"'(.*?)'", expected))
            elif kind == "union_tag_not_found":
                text = "its kind is missing: kind says which settings it has"
            if kind == "literal_error" and isinstance(item["input"], str):
                text += did_you_mean(item["input"], re.findall(r"'(.*?)'", item["ctx"]["expected"]))
            lines.append(_line(settings, path, text))
    return lines


def _written_path(settings: Settings, path: KeyPath) -> KeyPath:
    """As the user writes it: pydantic names the kind of a section on the way, too."""
    written: KeyPath = ()
    for part in path:
        section = _value(settings, written)
        if not (isinstance(section, Mapping) and part not in section and section.get("kind") == part):
            written = (*written, part)
    return written


def _nearest_key(path: KeyPath, fields: Mapping[KeyPath, FieldInfo]) -> str:
    """A sibling that is spelt alike, else the same word in another section, else the nearest word anywhere."""
    siblings = {known[-1]: known for known in fields if known[:-1] == path[:-1]}
    if not siblings:  # of a section whose kind decides what it has
        return ""
    elsewhere = {known[-1]: known for known in sorted(fields, key=len, reverse=True)}
    for names in (siblings, {n: p for n, p in elsewhere.items() if n == path[-1]}, elsewhere):
        hint = did_you_mean(path[-1], names)
        if hint:
            word = hint.removeprefix("; did you mean ").removesuffix("?")
            return f"; did you mean {'.'.join(names[word])}?"
    known_here = ", ".join(siblings) or "none"
    return f"; {'.'.join(path[:-1]) or 'a recipe'} has {known_here}"


def _line(settings: Settings, path: Sequence[str], text: str, *, config: CommonConfig | None = None) -> str:
    """`actors.num = 9 (command line): what is wrong`."""
    path = tuple(path)
    try:
        value, origin = settings.value(path), settings.origin(path)
    except KeyError:
        value, origin = config, "default"
        for part in path:
            value = getattr(value, part, None)
    shown = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return (
        f"{'.'.join(path)} = {shown if len(shown) <= 80 else shown[:77] + '...'} ({origin}): {' '.join(text.split())}"
    )


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe, of either half or on preferences, with the settings of all that is shipped."""
    from rollcall.deploy.config.preference_config import DirectRunConfig, RewardTrainConfig  # which import this file

    halves = [_half_schema(whole) for whole in (RunConfig, LanguageConfig, DirectRunConfig, RewardTrainConfig)]
    definitions = {name: value for half in halves for name, value in half.pop("$defs", {}).items()}
    return {"$defs": definitions, "anyOf": halves}


def _half_schema(whole: type[_Sectioned]) -> dict[str, Any]:
    schema: dict[str, Any] = cast(Any, whole).model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for section, plugin in whole.PLUGINS.items():
        variants = []
        for name in plugins.shipped(plugin):
            found = plugins.find(plugin, name)
            if plugin is plugins.ALGORITHM and plugins.is_language(found) != (whole is LanguageConfig):
                continue
            variant = found.Config.model_json_schema(ref_template="#/$defs/{model}")
            definitions.update(variant.pop("$defs", {}))
            definitions[variant["title"]] = variant
            variants.append({"$ref": f"#/$defs/{variant['title']}"})
        about = schema["properties"][section].get("description", "")
        schema["properties"][section] = {"description": about, "anyOf": [*variants, {"type": "string"}]}
    if "env" in schema["properties"]:
        env = schema["properties"]["env"]
        schema["properties"]["env"] = {
            "description": env.get("description", ""),
            "anyOf": [{k: v for k, v in env.items() if k != "description"}, {"type": "string"}],
        }
    return schema
