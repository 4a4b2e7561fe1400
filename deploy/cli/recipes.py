"""`rollcall recipes` and `config`: which recipes there are, and what one says."""

from __future__ import annotations

import argparse
import json

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.commands import DONE, SETTINGS, Add
from rollcall.deploy.config.settings import COMMAND_LINE, parse_yaml, preference_recipes, recipe_title, shipped_recipes


def add_recipes(add: Add) -> None:
    """Adds the commands that show recipes."""
    recipes = add("recipes", _recipes, "list the shipped recipes")
    recipes.add_argument("--json", action="store_true", help="print a JSON object: name -> what it trains")
    config = add("config", _config, "show a recipe's resolved configuration and what follows from it")
    config.add_argument("recipe", nargs="?", metavar="RECIPE")
    config.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=SETTINGS)
    config.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe instead")
    explained = (
        "what one setting means, its type and default, and where the recipe has it from; also lr, gamma, n_envs, ..."
    )
    config.add_argument("--explain", metavar="KEY", action="append", default=[], help=explained)
    config.add_argument("--json", action="store_true", help="print it as JSON")


def _recipes(args: argparse.Namespace) -> int:
    found = shipped_recipes() | preference_recipes()
    if args.json:
        print(json.dumps({name: recipe_title(path) for name, path in found.items()}, indent=1))
        return DONE
    width = max(map(len, found))
    for name, path in found.items():
        print(f"{name:<{width}}  {recipe_title(path)}")
    return DONE


def _config(args: argparse.Namespace) -> int:
    if args.recipe is None and not args.schema and not args.explain:
        raise BadInput(f"config needs a RECIPE, --explain KEY or --schema ({COMMAND_LINE}); see rollcall recipes")
    if args.explain:
        return _explain(args)
    from rollcall.deploy.config.kind_settings import checked_recipe, json_schema

    if args.schema:
        print(json.dumps(json_schema(), indent=1))
        return DONE
    config = checked_recipe(args.recipe, args.overrides)
    if args.json:
        settings = parse_yaml(config.to_yaml(), args.recipe).tree
        print(
            json.dumps({"config": settings, "config_hash": config.config_hash, "derived": config.derived()}, indent=1)
        )
        return DONE
    print(config.to_yaml(), end="")
    print(f"\n# config hash {config.config_hash}")
    for name, value in config.derived().items():
        print(f"# {name:<30}{value}")
    return DONE


def _explain(args: argparse.Namespace) -> int:
    from rollcall.deploy.config.catalogue.known_settings import explained

    if args.recipe is None:
        found = [one for key in args.explain for one in explained(key)]
    else:
        from rollcall.deploy.config.catalogue.explaining import explanations

        found = [one for key in args.explain for one in explanations(key, args.recipe, args.overrides)]
    if args.json:
        print(json.dumps([one.as_json() for one in found], indent=1))
    else:
        print("\n\n".join("\n".join(one.lines()) for one in found))
    return DONE
