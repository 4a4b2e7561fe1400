"""`rollcall solve`: the exact optimum of an env whose dynamics are known."""

from __future__ import annotations

import argparse
import json

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.commands import DONE, Add
from rollcall.deploy.config.settings import COMMAND_LINE, parse_override


def add_solve(add: Add) -> None:
    """Adds the command."""
    solve = add("solve", _solve, "print the exact optimum of an env that gives its transition table, and its policy")
    solve.add_argument("env", metavar="ENV", help="a gymnasium id, or module:function")
    solve.add_argument(
        "arguments", nargs="*", default=[], metavar="key=value", help="of the env, such as is_slippery=false"
    )
    solve.add_argument(
        "--discount",
        type=float,
        action="append",
        metavar="D",
        help="may be given again; 1: undiscounted, for episodes that end; default: 1 and 0.99",
    )
    solve.add_argument("--json", action="store_true", help="print values and policy of every state as JSON")


def _solve(args: argparse.Namespace) -> int:
    from rollcall.deploy.tools.solve import solve

    discounts = args.discount or [1.0, 0.99]
    for discount in discounts:
        if not 0.0 < discount <= 1.0:
            raise BadInput(f"--discount = {discount:g} ({COMMAND_LINE}): must be above 0, and 1 at the most")
    kwargs = {}
    for text in args.arguments:
        path, value = parse_override(text)
        kwargs[path[-1]] = value
    found = solve(args.env, kwargs, list(dict.fromkeys(discounts)))
    print(json.dumps(found.as_json()) if args.json else "\n".join(found.lines()))
    return DONE
