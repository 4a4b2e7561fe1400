"""`rollcall sweep`: one recipe over seeds and settings."""

from __future__ import annotations

import argparse
import json
import re

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.commands import DONE, FAILED, INTERRUPTED, SETTINGS, Add, at_least
from rollcall.deploy.config.settings import recipe_name


def add_sweep(add: Add) -> None:
    """Adds the command."""
    sweep = add("sweep", _sweep, "train a recipe over seeds and settings, several runs at a time, and compare them")
    sweep.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file")
    sweep.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=SETTINGS)
    search = "KEY=A,B,C or KEY=LOW..HIGH, with :log at its end on a log scale; may be given again"
    sweep.add_argument("--search", metavar="KEY=...", action="append", default=[], help=search)
    sweep.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N-1 of each; default: 1")
    trials = "search with Optuna for so many trials, and give up those that fall behind; default: every combination"
    sweep.add_argument("--trials", type=int, metavar="N", help=trials)
    sweep.add_argument("--jobs", type=int, metavar="N", help="runs at a time; default: as the cores allow")
    sweep.add_argument("--name", metavar="NAME", help="directory below runs/; default: sweep-RECIPE")
    sweep.add_argument("--json", action="store_true", help="print one JSON object")
    sweep.add_argument("-q", "--quiet", action="store_true", help="print the best alone")
    sweep.epilog = "Ctrl-C stops all with checkpoints; the same command goes on. --trials needs rollcall-rl[sweep]"


def _sweep(args: argparse.Namespace) -> int:
    from rollcall.deploy.config.catalogue.known_settings import refuse_unknown

    refuse_unknown(args.recipe, args.overrides)
    from rollcall.deploy.config.recipe.root_config import RUN_NAME
    from rollcall.deploy.rundir.jobs import runs_root
    from rollcall.deploy.tools.sweep.sweeping import Sweep, line_of, sweep

    at_least("--seeds", args.seeds, 1)
    at_least("--trials", args.trials, 1)
    at_least("--jobs", args.jobs, 1)
    name = args.name or f"sweep-{recipe_name(args.recipe)}"
    if not re.fullmatch(RUN_NAME, name):
        raise BadInput(f"--name {name!r}: a directory below runs/: letters, digits, '.', '_' and '-', 100 at the most")
    directory = runs_root() / name
    wanted = Sweep(args.recipe, args.overrides, args.search, args.seeds, args.trials, args.jobs, directory)
    silent = args.json or args.quiet
    found = sweep(wanted, (lambda text: None) if silent else (lambda text: print(text, flush=True)))
    best = found.best
    if args.json:
        rows = [
            {"number": o.proposal.number, "settings": o.proposal.settings, "score": o.score} for o in found.outcomes
        ]
        print(json.dumps({"directory": str(directory), "stopped": found.stopped, "trials": rows}, indent=1))
    elif best is not None:
        print(f"best: {line_of(best)}")
        if not args.quiet and found.page is not None:
            print(found.page)
    if found.stopped:
        return INTERRUPTED
    return DONE if best is not None else FAILED
