"""Reads a recipe's YAML and the command line's overrides into one tree that remembers where every value came from.
Knows nothing of what the keys mean: that is validation.py's."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.near_names import did_you_mean

KeyPath = tuple[str, ...]
TAGS = ("kind", "name", "id", "init_from")  # the setting that says which other ones its section has
_RECIPES = Path(__file__).resolve().parents[1] / "recipes"
COMMAND_LINE = "command line"
CALLER = "train(...)"
# What the run is called, where it is, who watches it, and whether it may begin.
NO_PART_OF_THE_RESULT = ("name", "cluster", "metrics", "redis", "supervision", "recorders", "if_too_large")


def settings_hash(values: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of the settings that determine a run's result, as they are written: one that is
    not there is no part of it, so a run's config.yaml has the same hash in every release."""
    hashed = {key: value for key, value in values.items() if key not in NO_PART_OF_THE_RESULT}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars. Stock PyYAML reads `off` as False, `1e-3` as text and `1:30` as a number in base 60."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way


class _Dumper(yaml.SafeDumper):
    """Quotes whatever text either this file's loader or stock PyYAML would read as anything else."""


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$"
        r"|^\.(?:nan|NaN|NAN)$",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as the YAML that `parse_yaml` reads them from again, every one the same."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)
    return text


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float | int:
    text = loader.construct_scalar(node).replace("_", "").lower()
    number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    # 1e6 is how people write a number of steps: without a point and without a fraction it is an integer.
    return int(number) if "." not in text and number.is_integer() else number


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


@dataclass
class Settings:
    """A tree of plain values, and for each node where it was written."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    source: str = ""
    made_by: str = ""  # which version of Rollcall wrote them, where they are a run's
    over: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # dotted key -> (the recipe's value, this one)

    def origin(self, path: KeyPath) -> str:
        """Where the value at `path` came from: it, its nearest section that was written, or the first thing in it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        # A section that nobody wrote as such: something in it was written.
        return next((origin for inside, origin in self.origins.items() if inside[: len(path)] == path), self.source)

    def value(self, path: KeyPath) -> Any:
        """The value at `path`. Raises KeyError when nothing was written there."""
        node: Any = self.tree
        for key in path:
            if isinstance(node, list) and key.isdigit() and int(key) < len(node):
                node = node[int(key)]
            elif isinstance(node, Mapping):
                node = node[key]
            else:
                raise KeyError(key)
        return node

    def get(self, path: KeyPath) -> Any:
        """The value at `path`; None where nothing was written."""
        try:
            return self.value(path)
        except KeyError:
            return None

    def has(self, path: KeyPath) -> bool:
        try:
            self.value(path)
        except KeyError:
            return False
        return True

    def set(self, path: KeyPath, value: Any, origin: str) -> None:
        """Writes one value, replacing what was there.

        Raises:
          BadInput: when a part of the way is not a section.
        """
        node = self.tree
        for depth, key in enumerate(path[:-1], start=1):
            child = node.setdefault(key, {})
            if child is None:
                child = node[key] = {}
            if not isinstance(child, dict):
                raise BadInput(
                    f"{'.'.join(path)}: {'.'.join(path[:depth])} is {child!r}, which has no settings inside ({origin})"
                )
            node = child
        node[path[-1]] = value
        self.origins = {p: o for p, o in self.origins.items() if p[: len(path)] != path}
        self.origins[path] = origin

    def rename(self, names: Mapping[KeyPath, KeyPath]) -> None:
        """What was written at an old path is read as written at its new one: old path -> new path."""
        for old, new in names.items():
            if self.has(old):
                origin, value = self.origin(old), self.value(old)
                section = self.value(old[:-1]) if old[:-1] else self.tree
                del section[old[-1]]
                self.set(new, value, origin)


def parse_yaml(text: str, source: str) -> Settings:
    """One YAML document with a mapping at its top; origins are `source:line`.

    Raises:
      BadInput: on a syntax error, a key written twice, or anything but a mapping at the top.
    """
    settings = Settings(source=source)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return settings
        if not isinstance(node, yaml.MappingNode):
            raise BadInput(f"{source}:1: a recipe is a mapping of settings, this is {str(node.value)[:40]!r}")
        settings.tree = _mapping(loader, node, (), settings)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{source}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
    return settings


def _mapping(loader: _Loader, node: yaml.MappingNode, path: KeyPath, settings: Settings) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
        line = key_node.start_mark.line + 1
        if key is None:
            raise BadInput(f"{settings.source}:{line}: a key must be a plain word")
        here = (*path, key)
        if key in result:
            first = settings.origins[here]
            raise BadInput(f"{settings.source}:{line}: {'.'.join(here)} is written twice (first at {first}); keep one")
        settings.origins[here] = f"{settings.source}:{line}"
        result[key] = _value(loader, value_node, here, settings)
    return result


def _value(loader: _Loader, node: yaml.Node, path: KeyPath, settings: Settings) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, settings)
    return loader.construct_object(node, deep=True)


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """`actors.num=4` -> (("actors", "num"), 4). The value is YAML: `[64, 64]` is a list, `{kind: maths}` a mapping.
    Text of several lines that is neither stays as it is.

    Raises:
      BadInput: when there is no `=`, a part of the key is empty, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise BadInput(f"{text!r}: an override is key=value, such as actors.num=2 ({COMMAND_LINE})")
    if not value.strip():
        raise BadInput(f"{key}: no value after '='; write {key}=null for none ({COMMAND_LINE})")
    several = "\n" in value
    try:
        parsed = parse_yaml(f"v:\n{textwrap.indent(value, '  ')}" if several else f"v: {value}", COMMAND_LINE).tree["v"]
    except BadInput as error:
        problem = str(error).rpartition("not valid YAML: ")[2]
        raise BadInput(
            f"{key} = {value!r} ({COMMAND_LINE}): not valid YAML: {problem}; text with such signs goes in quotes: "
            f"'{key}=\"...\"'"
        ) from None
    return path, value if several and not isinstance(parsed, list | dict) else parsed


def flat_values(values: Mapping[str, Any], prefix: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    """Dotted or nested keys from Python as single settings: {"actors": {"num": 2}} -> [(("actors", "num"), 2)]."""
    flat: list[tuple[KeyPath, Any]] = []
    for key, value in sorted(values.items(), key=lambda item: item[0] not in TAGS):  # what a section is of, first
        path = (*prefix, *str(key).split("."))
        flat += flat_values(value, path) if isinstance(value, Mapping) and value else [(path, value)]
    return flat


def dotted_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same by dotted keys: {"actors.num": 2}."""
    return {".".join(path): value for path, value in flat_values(values)}


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with Rollcall, by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


def preference_recipes() -> dict[str, Path]:
    """Those that learn from a file of preferences, without actors."""
    return {path.stem: path for path in sorted((_RECIPES / "preferences").glob("*.yaml"))}


def recipe_title(path: Path) -> str:
    """The first comment line of a recipe: what it trains."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def recipe_name(recipe: str | Path) -> str:
    """The base name of a shipped recipe or of a YAML file: what its runs are called."""
    return Path(recipe).stem if Path(recipe).suffix in (".yaml", ".yml") else Path(recipe).name


def read_recipe(recipe: str | Path) -> Settings:
    """The settings of a shipped recipe or of a YAML file.

    Raises:
      BadInput: when there is none of that name, or it cannot be read.
    """
    shipped = shipped_recipes() | preference_recipes()
    if str(recipe) in shipped:
        path = shipped[str(recipe)]
        return parse_yaml(path.read_text(encoding="utf-8"), path.name)
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        hint = did_you_mean(str(recipe), shipped) or f"; shipped are {', '.join(shipped)}"
        raise BadInput(f"unknown recipe {str(recipe)!r} ({COMMAND_LINE}){hint}")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise BadInput(f"cannot read the recipe {path}: {error.strerror or error} ({COMMAND_LINE})") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not a text file; a recipe is YAML in UTF-8") from None
