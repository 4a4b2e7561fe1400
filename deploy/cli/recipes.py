"""`rollcall recipes` and `config`: which recipes there are, and what one says."""

from __future__ import annotations

import argparse
import json

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.commands import DONE, SETTINGS, Add
from rollcall.deploy.config.settings import COMMAND_LINE, preference_recipes, recipe_title, shipped_recipes


def add_recipes(add: Add) -> None:
    """Adds the commands that show recipes."""
    add("recipes", _recipes, "list the shipped recipes")
    config = add("config", _config, "show a recipe's resolved configuration and what follows from it")
    config.add_argument("recipe", nargs="?", metavar="RECIPE")
    config.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=SETTINGS)
    config.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe instead")


def _recipes(args: argparse.Namespace) -> int:
    found = shipped_recipes() | preference_recipes()
    width = max(map(len, found))
    for name, path in found.items():
        print(f"{name:<{width}}  {recipe_title(path)}")
    return DONE


def _config(args: argparse.Namespace) -> int:
    from rollcall.deploy.kinds.recipes import json_schema, load_config

    if args.schema:
        print(json.dumps(json_schema(), indent=1))
        return DONE
    if args.recipe is None:
        raise BadInput(f"config needs a RECIPE or --schema ({COMMAND_LINE}); see rollcall recipes")
    config = load_config(args.recipe, args.overrides)
    print(config.to_yaml(), end="")
    print(f"\n# config hash {config.config_hash}")
    for name, value in config.derived().items():
        print(f"# {name:<30}{value}")
    return DONE
