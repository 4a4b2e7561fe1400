"""Validates objects strictly against the schemas of custom resources: an unknown field is an error, as it is to nobody
else until a day was lost."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rollcall.cluster.errors import BadInput
from rollcall.deploy.tools.manifests.objects import Finding, Object, where

Schema = Mapping[str, Any]
Kinds = Mapping[tuple[str, str], Schema]  # (apiVersion, kind) -> schema
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_PLAINER = {
    "object": "a section",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
}


def read_kinds(folder: Path) -> dict[tuple[str, str], Schema]:
    """The kinds that the custom resource definitions in a folder's YAML files describe.

    Raises:
      BadInput: a file cannot be read, or there is no definition in any of them.
    """
    kinds: dict[tuple[str, str], Schema] = {}
    for path in sorted(folder.glob("*.y*ml")):
        try:
            documents = read_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadInput(f"cannot read {path} (from --crds): {' '.join(str(error).split())}") from None
        for document in documents:
            if not isinstance(document, dict) or document.get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            for version in spec["versions"]:
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                kinds[key] = version["schema"]["openAPIV3Schema"]
    if not kinds:
        raise BadInput(f"no custom resource definition in {folder} (from --crds): give a folder of their YAML files")
    return kinds


def read_yaml(text: str) -> list[Any]:
    """All documents of a text, by the parser in C where there is one: builds and definitions are long."""
    return list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def check_schema(document: Object, kinds: Kinds) -> Iterator[Finding]:
    """What in the object is not as its kind's schema says; nothing for a kind that is not among them."""
    schema = kinds.get((str(document.get("apiVersion")), str(document.get("kind"))))
    if schema is None:
        return
    for path, text in _value(document, schema, ""):
        yield Finding(f"{where(document)}: {path}", text)


def _value(value: Any, schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    if value is None and schema.get("nullable", "default" in schema):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield path, f"{value!r} must be a number or text"
        elif isinstance(value, str):
            yield from _text(value, schema, path)
        return
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield path, f"{_short(value)} must be {_PLAINER.get(kind, f'a {kind}')}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield path, f"{value!r} must be one of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, dict):
        yield from _object(value, schema, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _value(item, schema.get("items") or {}, f"{path}[{index}]")
    elif isinstance(value, str):
        yield from _text(value, schema, path)
    elif isinstance(value, int | float):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            yield path, f"{value} must be from {schema.get('minimum', '-')} to {schema.get('maximum', '-')}"
        if schema.get("format") == "int32" and abs(value) >= 2**31:
            yield path, f"{value} does not fit into 32 bits"


def _object(value: Mapping[str, Any], schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    known = schema.get("properties") or {}
    more = schema.get("additionalProperties")
    # An object's own metadata is Kubernetes', whatever a definition says of it.
    free = schema.get("x-kubernetes-preserve-unknown-fields") or (not known and path.endswith("metadata"))
    for name in schema.get("required") or []:
        if name not in value:
            yield _join(path, name), "is missing"
    for name, inner in value.items():
        place = _join(path, str(name))
        if name in known:
            yield from _value(inner, known[name], place)
        elif isinstance(more, Mapping):
            yield from _value(inner, more, place)
        elif not (free or more):
            near = difflib.get_close_matches(str(name), known, n=1)
            yield place, "unknown field" + (f": do you mean {near[0]}?" if near else "")


def _text(value: str, schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    if "pattern" in schema and re.search(schema["pattern"], value) is None:
        yield path, f"{value!r} does not have the form {schema['pattern']}"
    if len(value) > schema.get("maxLength", len(value)) or len(value) < schema.get("minLength", 0):
        yield (
            path,
            f"{value!r} has {len(value)} characters: from {schema.get('minLength', 0)} to {schema.get('maxLength')}",
        )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
