"""`rollcall select`: data sets from the best of what a policy samples."""

from __future__ import annotations

import argparse
from pathlib import Path

from rollcall.deploy.cli.commands import SETTINGS, Add, at_least


def add_select(add: Add) -> None:
    """Adds the command."""
    text = "sample several completions a prompt, score them, and keep the best as data sets to train on"
    select = add("select", _select, text)
    select.add_argument(
        "target",
        metavar="RUN_OR_RECIPE",
        help="a run or checkpoint of a language model; or a recipe with a task, and its policy.model=DIRECTORY "
        "or policy.init_from=RUN",
    )
    select.add_argument(
        "directory", type=Path, metavar="DIRECTORY", help="where the data sets go; one that was begun is gone on with"
    )
    select.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=f"{SETTINGS}; reward=maths")
    select.add_argument("--samples", type=int, metavar="N", help="completions of a prompt (actors.samples_per_prompt)")
    select.add_argument("--prompts", type=int, metavar="N", help="prompts, in a seeded order; default: all that fit")
    select.add_argument("--best", type=int, metavar="K", help="keep the K best of a prompt; default: 1 (best-of-n)")
    select.add_argument(
        "--at-least",
        type=float,
        metavar="SCORE",
        help="keep what scores as much (rejection sampling): all of it, or with --best so many of a prompt",
    )
    select.add_argument(
        "--seed", type=int, default=0, metavar="S", help="which prompts, and what is sampled; default: 0"
    )
    select.epilog = (
        "writes completions.jsonl (each prompt once, all its completions with their scores), sft.jsonl (for "
        "task.name=jsonl), pairs.jsonl (for reward models and direct methods), with --at-least also labelled.jsonl "
        "(for kto), and summary.json (the expected best of 1, 2, 4, ... and its KL). The same command again goes on; "
        "another --best or --at-least only chooses anew"
    )


def _select(args: argparse.Namespace) -> int:
    from rollcall.deploy.tools.select import main

    for name, least in (("samples", 1), ("prompts", 1), ("best", 1), ("seed", 0)):
        at_least(f"--{name}", getattr(args, name), least)
    return main(args)
