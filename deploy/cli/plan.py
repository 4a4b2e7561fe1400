"""`rollcall plan`: what a recipe's run will need of memory and disk, what there is, and what to change."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rollcall.deploy.cli.commands import BAD_INPUT, DONE, SETTINGS, Add, answer_slips
from rollcall.deploy.config.runtime_choice import CLUSTER

if TYPE_CHECKING:
    from rollcall.deploy.plan.machine import Machine

_EXIT = "exit code 2: it does not fit; with RAY_ADDRESS the machines are those of that cluster"


def add_plan(add: Add) -> None:
    """Adds the command."""
    plan = add("plan", _plan, "what a run will need of memory, GPUs and disk, and whether this machine has it")
    plan.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file")
    plan.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=SETTINGS)
    plan.add_argument("--json", action="store_true", help="print it as JSON, in bytes")
    plan.add_argument("--sft", action="store_true", help="of rollcall sft: the warm start as a run of its own")
    plan.epilog = _EXIT


def _plan(args: argparse.Namespace) -> int:
    answer_slips(args.recipe, args.overrides)
    from rollcall.deploy.kinds.recipes import load_recipe, load_supervised
    from rollcall.deploy.plan.planning import plan_for
    from rollcall.deploy.plan.text import as_json, whole

    recipe = (load_supervised if args.sft else load_recipe)(args.recipe, args.overrides)
    with tempfile.TemporaryDirectory() as aside:
        needs = recipe.kind.make(recipe.config, Path(aside) / "run").needs()
    plan = plan_for(recipe.config, needs, _machines(needs.on_ray), private=CLUSTER not in os.environ)
    print(json.dumps(as_json(plan), indent=1) if args.json else "\n".join(whole(plan)))
    return BAD_INPUT if plan.problems() else DONE


def _machines(on_ray: bool) -> Sequence[Machine]:
    from rollcall.deploy.plan.machine import this_machine
    from rollcall.deploy.rundir.jobs import runs_root

    if not on_ray or CLUSTER not in os.environ:
        return [this_machine(runs_root())]
    from rollcall.deploy.runtimes.on_ray.ray_cluster.cluster import connect

    cluster = connect(num_cpus=0)
    try:
        from rollcall.deploy.runtimes.on_ray.ray_cluster.machines import machines_of, ray_nodes

        return machines_of(ray_nodes(), runs_root().resolve(), here=None)
    finally:
        cluster.close()
