"""`rollcall new` and `check`: a file to begin with, and a look at it before a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.commands import BAD_INPUT, DONE, Add
from rollcall.deploy.config.settings import parse_override

WHAT = ("env", "reward", "task", "algorithm", "recipe")


def add_own(add: Add) -> None:
    """Adds the two commands."""
    new = add("new", _new, "write an env, reward, task, algorithm or recipe that works, and a test beside it")
    new.add_argument("what", choices=WHAT, metavar="WHAT", help=", ".join(WHAT))
    new.add_argument("name", metavar="NAME", help="of the module: my_env writes my_env.py and test_my_env.py")
    new.add_argument("--into", type=Path, default=Path(), metavar="DIRECTORY", help="default: where you stand")
    check = add("check", _check, "call an env, reward or task a few times, and say what is wrong before a run does")
    check.add_argument("name", metavar="MODULE:THING", help="or a gymnasium id")
    check.add_argument(
        "arguments", nargs="*", default=[], metavar="key=value", help="of the env; settings of the task; columns"
    )
    check.add_argument("--as", dest="what", choices=("env", "reward", "task"), help="default: by what it is")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.epilog = "exit code 2: a run could not use it"


def _new(args: argparse.Namespace) -> int:
    from rollcall.deploy.tools.own.beginning import write_new

    file, test = write_new(args.what, args.name, args.into)
    print(f"{file}\n{test}\nrun the test: python -m pytest {test}")
    return DONE


def _check(args: argparse.Namespace) -> int:
    from rollcall.deploy.tools.own.looking import look_at

    given = [parse_override(argument) for argument in args.arguments]
    nested = [".".join(path) for path, _ in given if len(path) > 1]
    if nested:
        raise BadInput(f"argument {nested[0]} (command line): a name without dots is needed, as NAME={{key: value}}")
    kwargs = {path[-1]: value for path, value in given}
    seen = look_at(args.name, kwargs, args.what)
    print(json.dumps(seen.as_json(), indent=1) if args.json else "\n".join(seen.lines()))
    return BAD_INPUT if seen.problems else DONE
