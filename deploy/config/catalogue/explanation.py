"""What one setting means: its type and bounds, its default, and what a recipe makes of it and where. Read from the
models that hold the settings, so that nothing is written twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.deploy.config.catalogue.other_names import other_names, settings_called
from rollcall.deploy.config.settings import COMMAND_LINE, KeyPath, Settings

_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "pattern": "like {}"}
_NAMES = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text", "NoneType": "null"}

FOLLOWS, REQUIRED = "follows from other settings", "none: it has to be given"  # in place of a default
_Of = TypeVar("_Of")


@dataclass(frozen=True)
class Explanation:
    """One setting, of recipes of one kind. `value` and `origin` are of a recipe, where one was given."""

    setting: str
    of: str  # which recipes have it
    type: str
    bounds: str
    default: str
    about: str
    elsewhere: tuple[str, ...]  # what others call it
    value: str | None = None
    origin: str | None = None

    def lines(self) -> list[str]:
        type_text = f"{self.type}, {self.bounds}" if self.bounds else self.type
        lines = [self.setting, f"  {self.about}" if self.about else "  (no description)", f"  type: {type_text}"]
        lines.append(f"  default: {self.default}")
        if self.value is not None:
            lines.append(f"  here: {self.value} ({self.origin})")
        if self.elsewhere:
            lines.append(f"  elsewhere: {', '.join(self.elsewhere[:8])}")
        return [*lines, f"  of: {self.of}"]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def explain(
    path: KeyPath,
    info: FieldInfo,
    *,
    of: Iterable[str],
    settings: Settings | None = None,
    config: BaseModel | None = None,
) -> Explanation:
    """`of`: what has it, in words. `settings` and `config`: of a recipe, whose value and its origin are told too."""
    value = origin = None
    if config is not None and settings is not None:
        value = _value_text(_value(config, path))
        origin = settings.origin(path) if settings.has(path) else "default"
    return Explanation(
        setting=".".join(path),
        of=", ".join(dict.fromkeys(of)),
        type=type_text(info.annotation),
        bounds=bounds_text(info),
        default=default_text(info),
        about=" ".join((info.description or "").split()),
        elsewhere=other_names(".".join(path)),
        value=value,
        origin=origin,
    )


def type_text(annotation: Any) -> str:
    """A type in plain words: `whole number or null`, `one of "ray", "serial"`, `section`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(json.dumps(value) for value in arguments)}"
    if origin in (Union, UnionType):
        words = dict.fromkeys(type_text(part) for part in sorted(arguments, key=lambda part: part is NoneType))
        return " or ".join(words)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if origin in (tuple, list, set, frozenset) or annotation in (tuple, list):
        inner = next((type_text(part) for part in arguments if part is not ...), "values")
        return f"list of {inner}"
    if origin is dict or origin is Mapping or annotation is dict:
        return "section"
    name = getattr(annotation, "__name__", str(annotation))
    return _NAMES.get(name, name)


def bounds_text(info: FieldInfo) -> str:
    """What a value may be, in words; empty: whatever its type allows."""
    found = []
    for part in info.metadata:
        for name, text in _BOUNDS.items():
            bound = getattr(part, name, None)
            if bound is not None:
                found.append(text.format(bound))
    return ", ".join(found)


def default_text(info: FieldInfo) -> str:
    """What a setting is that nobody writes, as JSON or in words."""
    if info.default_factory is not None:
        try:
            made = info.default_factory()  # type: ignore[call-arg]
        except TypeError:
            return FOLLOWS
        return _value_text(made)
    if info.default is PydanticUndefined:
        return REQUIRED
    return _value_text(info.default)


def _value(config: BaseModel, path: KeyPath) -> Any:
    value: Any = config
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return value


def _value_text(value: Any) -> str:
    if isinstance(value, BaseModel):
        return json.dumps(value.model_dump(mode="json"), default=str)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def wanted(key: str, known: Sequence[tuple[KeyPath, _Of]]) -> list[tuple[KeyPath, _Of]]:
    """Of settings with something about each those that `key` means: a setting, its last word, a section, or what
    another framework calls it.

    Raises:
      BadInput: where nothing is called so.
    """
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
    words = {name.rpartition(".")[2]: name for name in names}
    hint = did_you_mean(key, names) or did_you_mean(path[-1], words) or "; rollcall config --schema has all of them"
    raise BadInput(f"--explain {key} ({COMMAND_LINE}): there is no such setting{hint}")


def together(found: Iterable[Explanation]) -> list[Explanation]:
    """One for all that differ in nothing but who has it."""
    merged: dict[Explanation, list[str]] = {}
    for one in found:
        merged.setdefault(replace(one, of=""), []).append(one.of)
    return [replace(one, of=", ".join(dict.fromkeys(who))) for one, who in merged.items()]
