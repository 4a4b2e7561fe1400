"""Tabular control: a method with a table of action values plays one episode after the other. A recipe with an env whose
algorithm is one of learners/tabular/methods. Where the env gives its transition table, what was learnt is held
against the exact optimum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rollcall.actors.control.evaluation import Evaluator
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.arrays import Array
from rollcall.deploy.config import plugins
from rollcall.deploy.config.kinds.tabular import SETTINGS
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.tabular_config import TabularRunConfig
from rollcall.deploy.kinds.kind import POLICY_ID, Preparation, RunKind
from rollcall.deploy.kinds.tabular.numbered import LONGEST, NumberedEnv
from rollcall.deploy.kinds.tabular.policy import LoadedTable, TablePolicy, elsewhere
from rollcall.deploy.plan import memory
from rollcall.deploy.plan.needs import Needs, Part, Role
from rollcall.deploy.report.closing import eval_line, evaluated, report_line, steps_line
from rollcall.deploy.report.counted import PLAYED
from rollcall.deploy.report.live_view import online_console
from rollcall.deploy.report.progress import number, percent
from rollcall.learners.tabular import planning
from rollcall.learners.tabular.learner import Episodes, TableLearner
from rollcall.learners.tabular.model import Model
from rollcall.learners.tabular.planning import NoOptimum, Solution

BYTES_PER_PAIR = 64  # of a state and an action: tables, counts, and a checkpoint's copies of them


class TabularRun:
    """One run, as an OfflineRun: its source are the numbers of its episodes."""

    drive: Literal["offline"] = "offline"
    policy_id = POLICY_ID
    is_over = False

    def __init__(self, config: TabularRunConfig, directory: Path) -> None:
        self._config = config
        self._env: NumberedEnv | None = None

    @property
    def env(self) -> NumberedEnv:
        if self._env is None:
            self._env = NumberedEnv(self._config.env)
        return self._env

    def preparations(self) -> Iterator[Preparation]:
        yield from ()

    def needs(self) -> Needs:
        size = self.env.num_states * self.env.num_actions * BYTES_PER_PAIR
        parts = (Part("program", memory.LEARNER, host=True), Part("tables", size, host=True))
        return Needs(
            model=f"a table of {self.env.num_states:,} states and {self.env.num_actions:,} actions",
            roles=(Role("trainer", parts),),
            checkpoint_bytes=size,
            checkpoints_kept=self._config.checkpoint.keep,
            on_ray=False,
        )

    @cached_property
    def source(self) -> Episodes:
        return Episodes(self._config.num_episodes, self._config.episodes_per_step)

    @property
    def steps(self) -> int:
        return self.source.steps

    @property
    def eval_every(self) -> int:
        return self._config.eval.every_steps or self.steps

    @cached_property
    def learner(self) -> TableLearner:
        config, env = self._config, self.env
        method = plugins.find(plugins.TABULAR, config.algorithm_name)
        settings: Any = config.algorithm
        return TableLearner(
            env,
            method(env.num_states, env.num_actions, settings),
            settings,
            num_episodes=config.num_episodes,
            seed=config.seed,
            policy_id=self.policy_id,
            max_steps=env.limit or LONGEST,
            best=self._best,
        )

    @cached_property
    def _model(self) -> Model | None:
        return self.env.model()

    @cached_property
    def _optimum(self) -> Solution | None:
        if self._model is None:
            return None
        try:
            return planning.optimum(self._model, self._discount)
        except NoOptimum:
            return None

    @property
    def _discount(self) -> float:
        return float(getattr(self._config.algorithm, "discount", 1.0))

    @property
    def _best(self) -> Array | None:
        if self._model is None or self._optimum is None or self._config.algorithm_name not in OF_OPTIMAL_VALUES:
            return None
        return np.where(self._model.reachable() & ~self._model.ends(), self._optimum.values, np.nan)

    @cached_property
    def _evaluator(self) -> Evaluator:
        env = self.env.env
        return Evaluator(
            self._config.env, self._config.eval, lambda: TablePolicy(env.observation_space, env.action_space)
        )

    def save(self, checkpoint: Path) -> None:
        """The learner's state is all there is."""

    def restore(self, checkpoint: Path) -> None: ...

    def evaluate(self, step: int) -> Mapping[str, Any] | None:
        """Not before the first step: a table that knows nothing may walk into a wall until its time is up."""
        if step == 0 or not self._config.eval.episodes:
            return None
        found = self._evaluator.evaluate(self.learner.weights(epoch=0, version=step))
        record: dict[str, Any] = {key: getattr(found, key) for key in ("mean", "std", "n", "unit", "unfinished")}
        return {**record, **self._exact()}

    def _exact(self) -> dict[str, float]:
        """What the greedy policy is worth from the first state, and what the best one is."""
        model, best = self._model, self._optimum
        if model is None or best is None:
            return {}
        policy = planning.greedy(self.learner.values)
        try:
            own = float(
                model.start @ planning.closed_form(model, policy, self._discount, among=model.reachable(policy))
            )
        except NoOptimum:  # undiscounted, it walks for ever
            own = -math.inf
        return {"policy_value": own, "optimal_value": float(model.start @ best.values)}

    def finish(self, steps_done: int) -> Mapping[str, Any]:
        self._evaluator.close()
        self.env.close()
        return {"discount": self._discount, **self._exact()}


OF_OPTIMAL_VALUES = (
    "q_learning",
    "double_q_learning",
    "dyna_q",
)  # what they learn are the best policy's, not their own


def _unfit(config: TabularRunConfig) -> list[Problem]:
    env = config.env
    try:
        NumberedEnv(env).close()
    except BadInput as error:
        return [Problem(("env", "id"), str(error).removeprefix(f"env {env.id!r} "))]
    return []


def _closing_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    lines = [f"{steps_line(summary)}, {number(summary[PLAYED.total])} env steps, {number(summary[PLAYED.speed])}/s"]
    lines += evaluated("final evaluation", summary.get("final_eval"))
    if (best := summary.get("optimal_value")) is not None:
        own = summary["policy_value"]
        share = f" ({percent(own / best)} of it)" if best > 0 else ""
        lines.append(
            f"exactly, from the first state at discount {summary['discount']:g}: {own:.6g}; the optimum is {best:.6g}"
            f"{share}"
        )
    return [*lines, report_line(run_directory)]


TABULAR = RunKind(
    settings=SETTINGS,
    counts=PLAYED,
    make=TabularRun,
    load=LoadedTable.of,
    elsewhere=elsewhere,
    closing_lines=_closing_lines,
    console=online_console,
    unfit=_unfit,
    eval_line=eval_line,
    data="a table",
    policy="table",
)
