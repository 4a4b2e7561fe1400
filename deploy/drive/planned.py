"""A run's plan, made before anything is loaded: told of in a line or two, and the reason to refuse a run that does not
fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.root_config import RootConfig
from rollcall.deploy.kinds.kind import Driven
from rollcall.deploy.plan.machine import Machine, this_machine
from rollcall.deploy.plan.planning import Plan, plan_for
from rollcall.deploy.plan.text import essence

Tell = Callable[[str, str], None]  # (kind, text)


def plan_here(config: RootConfig, members: Driven, directory: Path, tell: Tell) -> Plan | None:
    """The plan on this machine, as `plan_on`; None: the run's processes are to be on a cluster, which is asked when it
    is reached."""
    on_cluster = members.drive == "online" and getattr(config, "runtime", "") == "ray" and "RAY_ADDRESS" in os.environ
    return None if on_cluster else plan_on([this_machine(directory)], config, members, tell)


def plan_on(machines: Sequence[Machine], config: RootConfig, members: Driven, tell: Tell) -> Plan | None:
    """The plan, once it is told. None: what the run needs cannot be known.

    Raises:
      BadInput: when the run does not fit, and is not to be tried all the same.
    """
    try:
        needs = members.needs()
    except BadInput as error:
        tell("plan", f"not known: {error}")
        return None
    plan = plan_for(config, needs, machines)
    problems = plan.problems()
    if problems and config.if_too_large == "refuse":
        raise BadInput("\n".join(problems))
    for line in (*essence(plan), *(line for problem in problems for line in problem.splitlines())):
        tell("plan", line)
    return plan
