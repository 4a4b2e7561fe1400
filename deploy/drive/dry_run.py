"""`rollcall train --dry-run`: everything that a run does before it begins, and nothing of what it leaves behind. The
settings, the other runs that it names, the data, the model's config, the plan."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollcall.deploy.config.runtime_choice import CLUSTER
from rollcall.deploy.kinds.beginning import beginning_of, expert_of
from rollcall.deploy.kinds.kind import Driven
from rollcall.deploy.kinds.recipes import Recipe
from rollcall.deploy.plan.machine import this_machine
from rollcall.deploy.plan.planning import Plan, plan_for
from rollcall.deploy.plan.text import essence
from rollcall.deploy.rundir.directories import next_directory
from rollcall.deploy.rundir.jobs import runs_root


@dataclass(frozen=True)
class DryRun:
    """What was looked at, a line each, and the plan."""

    name: str
    looked_at: tuple[str, ...]
    derived: dict[str, str]
    plan: Plan

    @property
    def problems(self) -> list[str]:
        return self.plan.problems()

    def lines(self, *, explicit: bool = False) -> list[str]:
        """`explicit`: the run's name was asked for, and so gets no number."""
        where = runs_root() / self.name if explicit else next_directory(self.name)
        facts = [f"{name:<30}{value}" for name, value in self.derived.items()]
        found = [*facts, *self.looked_at, *(f"plan: {line}" for line in essence(self.plan))]
        return [*found, f"nothing was written; without --dry-run the run begins in {where}"]

    def as_json(self) -> dict[str, Any]:
        return {
            **{"name": self.name, "ok": not self.problems, "problems": self.problems},
            **{"looked_at": list(self.looked_at), "derived": self.derived, "plan": essence(self.plan)},
        }


def dry_run(recipe: Recipe) -> DryRun:
    """Reads what the run would read at its start.

    Raises:
      BadInput: as the run itself would before its first step: of settings, data, models, and runs that it names.
    """
    looked_at = []
    for what, begun in (("policy.init_from", beginning_of(recipe)), ("algorithm.expert", expert_of(recipe))):
        if begun is not None:
            looked_at.append(f"{what}: {begun.origin['checkpoint']}, version {begun.origin['policy_version']}")
    with tempfile.TemporaryDirectory(prefix="rollcall-dry-run-") as aside:
        directory = Path(aside) / "run"
        directory.mkdir()
        members = recipe.kind.make(recipe.config, directory)
        if members.drive == "online":
            members.check()
        looked_at += _data(members)
        needs = members.needs()
        looked_at.append(f"model: {needs.model}")
    plan = plan_for(recipe.config, needs, [this_machine(runs_root())], private=CLUSTER not in os.environ)
    return DryRun(recipe.config.name, tuple(looked_at), recipe.config.derived(), plan)


def _data(members: Driven) -> Iterator[str]:
    """Of a task its rows, read to their end; of a run on data, all that it learns from."""
    task = getattr(members, "task", None)
    if task is not None and hasattr(task, "rows"):
        rows = task.rows("train")
        yield f"data: {len(rows):,} rows to train on, {len(task.rows('eval')):,} held out"
        if len(rows):
            yield f"first prompt: {_shown(rows[0])}"
    elif members.drive == "offline":
        next(iter(members.preparations()), None)  # the first thing that it does is to read its data
        yield f"data: read, for {members.steps:,} learner steps"


def _shown(row: Any, longest: int = 80) -> str:
    text = " ".join(str(getattr(row, "prompt", row)).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
