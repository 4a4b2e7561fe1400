"""The JSON schema of recipes, with the settings of every plug-in that is shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rollcall.deploy.config import plugins
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.learners.declared import Declared


def json_schema(roots: Iterable[tuple[type[RootConfig], Callable[[type[Any] | Declared], bool]]]) -> dict[str, Any]:
    """Of recipes of these configurations. Each comes with what says whether an algorithm is one for it."""
    schemas = [_root_schema(whole, fits) for whole, fits in roots]
    definitions = {name: value for schema in schemas for name, value in schema.pop("$defs", {}).items()}
    return {"$defs": definitions, "anyOf": schemas}


def _root_schema(whole: type[RootConfig], fits: Callable[[type[Any] | Declared], bool]) -> dict[str, Any]:
    schema = whole.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for section, plugin in whole.PLUGINS.items():
        variants = []
        for name in plugins.shipped(plugin):
            found = plugins.declared(plugin, name)
            if section == "algorithm" and not fits(found):
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
