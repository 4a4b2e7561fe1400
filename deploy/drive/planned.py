"""A run's plan, made before anything is loaded: told of in a line or two, and the reason to refuse a run that does not
fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.recipe.language_config import ActingConfig
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.kinds.kind import Driven, MemberFactory, OfflineRun
from rollcall.deploy.plan.machine import Machine, this_machine
from rollcall.deploy.plan.planning import Plan, plan_for
from rollcall.deploy.plan.text import essence
from rollcall.learners.algorithms.language.token_settings import TOKEN_BUDGET

SMALLER_BUDGETS = (8192, 4096, 2048, 1024, 512)
Tell = Callable[[str, str], None]  # (kind, text)


def plan_alone(config: RootConfig, run: OfflineRun, directory: Path, tell: Tell) -> Plan | None:
    """Of a run in this process. Raises BadInput as plan_on."""
    plan = _plan(config, run, [this_machine(directory)], tell)
    if plan is not None:
        _tell_or_refuse(plan, config, tell)
    return plan


def plan_here(
    config: ActingConfig, members: MemberFactory, directory: Path, tell: Tell
) -> tuple[Plan | None, MemberFactory]:
    """As plan_on, for this machine. No plan: the run is to be on a cluster, which is asked when it is reached."""
    if config.runtime == "ray" and "RAY_ADDRESS" in os.environ:
        return None, members
    return plan_on([this_machine(directory)], config, members, tell)


def plan_on(
    machines: Sequence[Machine], config: ActingConfig, members: MemberFactory, tell: Tell
) -> tuple[Plan | None, MemberFactory]:
    """The plan, once it is told, and the members that it is of: with fewer tokens in a forward pass where the settings
    leave that open and the run does not fit otherwise. (Sums of floats come out otherwise then, in their last bits: a
    run that fits stays as it is.) No plan: what the run needs cannot be known.

    Raises:
      BadInput: when the run does not fit, and is not to be tried all the same.
    """
    plan = _plan(config, members, machines, tell)
    if plan is None:
        return None, members
    for tokens in SMALLER_BUDGETS if plan.problems() else ():
        smaller = members.with_token_budget(tokens)
        if smaller is None:
            break
        fitting = plan_for(config, smaller.needs(), machines)
        if not fitting.problems():
            tell("plan", f"algorithm.token_budget={tokens}, as there is no memory for {TOKEN_BUDGET}")
            plan, members = fitting, smaller
            break
    _tell_or_refuse(plan, config, tell)
    return plan, members


def _plan(config: RootConfig, members: Driven, machines: Sequence[Machine], tell: Tell) -> Plan | None:
    try:
        return plan_for(config, members.needs(), machines)
    except BadInput as error:
        tell("plan", f"not known: {error}")
        return None


def _tell_or_refuse(plan: Plan, config: RootConfig, tell: Tell) -> None:
    problems = plan.problems()
    if problems and config.if_too_large == "refuse":
        raise BadInput("\n".join(problems))
    for line in (*essence(plan), *(line for problem in problems for line in problem.splitlines())):
        tell("plan", line)
