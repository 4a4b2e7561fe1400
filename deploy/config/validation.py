"""Settings as a configuration, and what is wrong with them in one line each: the dotted path, the value, where it was
written, and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from types import UnionType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.deploy.config import plugins
from rollcall.deploy.config.learner_settings import as_written
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.root_config import RootConfig, plugin_name_of
from rollcall.deploy.config.settings import KeyPath, Settings
from rollcall.deploy.config.wording import line_about, nearest_key

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

_Config = TypeVar("_Config", bound=RootConfig)


def validated(
    settings: Settings, whole: type[_Config], sections: Mapping[str, type[BaseModel]] | None = None
) -> _Config:
    """The settings as a configuration of the class `whole`. `sections` are of models that depend on the settings, as
    those of plug-ins do, which are found here. A plug-in's section is validated once: the whole takes what came of it.

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
            models[section] = plugins.declared(plugin, plugin_name_of(written)).Config
        except BadInput as error:
            lines.append(line_about(settings, (section, "name"), str(error)))
    fields = setting_fields(whole, models)
    told = {section for section in (*whole.PLUGINS, *models) if settings.tree.get(section) is not None}
    read: dict[str, BaseModel | None] = dict.fromkeys(told)
    for section, model in models.items():
        try:
            read[section] = model.model_validate_json(_json(settings.tree[section]), strict=True)
        except ValidationError as error:
            lines += _explain(error, settings, fields, prefix=(section,))
    config: _Config | None = None
    try:
        config = whole.model_validate_json(_json(settings.tree), strict=True, context=read)
    except ValidationError as error:
        lines += _explain(error, settings, fields, skip=told)
    if config is None or lines:
        raise BadInput("\n".join(dict.fromkeys(lines)))
    return config


def refused(settings: Settings, problems: Sequence[Problem], config: RootConfig) -> BadInput:
    """One line for each problem."""
    lines = [line_about(settings, problem.path, problem.text, config=config) for problem in problems]
    return BadInput("\n".join(dict.fromkeys(lines)))


def _json(value: Any) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """What Python gives in place of JSON's own: a section as its model, numpy's numbers and arrays, a path."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def setting_fields(model: type[BaseModel], sections: Mapping[str, type[BaseModel]]) -> dict[KeyPath, FieldInfo]:
    """Every setting there is, by path; `sections` are the models of plug-ins."""
    found: dict[KeyPath, FieldInfo] = {}
    for name, info in model.model_fields.items():
        found[name,] = info
        inner: Any = sections.get(name, info.annotation)
        if isinstance(inner, UnionType):  # a section that may be left out
            inner = next((part for part in inner.__args__ if part is not type(None)), None)
        if isinstance(inner, type) and issubclass(inner, BaseModel) and inner is not BaseModel:
            found |= {(name, *path): below for path, below in setting_fields(inner, {}).items()}
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
            lines.append(line_about(settings, path, text))
        elif kind == "extra_forbidden":
            lines.append(line_about(settings, path, f"unknown key{nearest_key(path, fields)}"))
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
            lines.append(line_about(settings, path, text))
    return lines


def _written_path(settings: Settings, path: KeyPath) -> KeyPath:
    """As the user writes it: pydantic names the kind of a section on the way, too."""
    written: KeyPath = ()
    for depth, part in enumerate(path, start=1):
        section = settings.get(written)
        kind = section.get("kind", part if depth < len(path) else None) if isinstance(section, Mapping) else None
        if kind != part or part in section:
            written = (*written, part)
    return as_written(settings, written)
