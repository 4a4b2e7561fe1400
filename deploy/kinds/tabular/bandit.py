"""Bandits: a method on a test bed of many problems side by side. A recipe with a section `bandit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rollcall.cluster.checkpoint import load_weights
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config import plugins
from rollcall.deploy.config.kinds.bandit import SETTINGS
from rollcall.deploy.config.recipe.tabular_config import BanditRunConfig
from rollcall.deploy.kinds.checkpoints import checkpoint_of
from rollcall.deploy.kinds.exporting import Exported, ExportOptions
from rollcall.deploy.kinds.kind import POLICY_ID, EvalOptions, Preparation, RunKind, StoredRun
from rollcall.deploy.plan import memory
from rollcall.deploy.plan.needs import Needs, Part, Role
from rollcall.deploy.report.closing import report_line, steps_line
from rollcall.deploy.report.counted import PLAYED
from rollcall.deploy.report.live_view import online_console
from rollcall.deploy.report.progress import percent
from rollcall.learners.tabular.learner import BanditLearner, Episodes
from rollcall.learners.tabular.test_bed import TestBed

BYTES_PER_ARM = 64


class BanditRun:
    """One run, as an OfflineRun: its source are the numbers of its pulls."""

    drive: Literal["offline"] = "offline"
    policy_id = POLICY_ID
    is_over = False

    def __init__(self, config: BanditRunConfig, directory: Path) -> None:
        self._config = config

    def preparations(self) -> Iterator[Preparation]:
        yield from ()

    def needs(self) -> Needs:
        bandit = self._config.bandit
        size = bandit.arms * bandit.problems * BYTES_PER_ARM
        tables = Part("tables", size, "bandit.problems, bandit.arms", host=True)
        return Needs(
            model=f"{bandit.problems:,} bandits of {bandit.arms:,} arms",
            roles=(Role("trainer", (Part("program", memory.LEARNER, host=True), tables)),),
            checkpoint_bytes=size,
            checkpoints_kept=self._config.checkpoint.keep,
            on_ray=False,
        )

    @property
    def steps(self) -> int:
        return self._config.total_learner_steps

    @property
    def source(self) -> Episodes:
        return Episodes(self.steps, 1)

    @cached_property
    def learner(self) -> BanditLearner:
        config, bandit = self._config, self._config.bandit
        rng = np.random.default_rng(derive_seed(config.seed, "problems"))
        test_bed = TestBed.drawn(bandit.problems, bandit.arms, rng, mean=bandit.mean)
        method = plugins.find(plugins.BANDIT, config.algorithm_name)
        made = method(bandit.problems, bandit.arms, config.algorithm)
        return BanditLearner(test_bed, made, seed=config.seed, policy_id=self.policy_id)

    @property
    def eval_every(self) -> int:
        return self.steps

    def save(self, checkpoint: Path) -> None:
        """The learner's state is all there is."""

    def restore(self, checkpoint: Path) -> None: ...

    def evaluate(self, step: int) -> None:
        """A bandit is judged by what it gets while it learns."""

    def finish(self, steps_done: int) -> Mapping[str, Any]:
        regret = self.learner.regret
        return {"regret": regret, "regret_per_pull": regret / max(1, steps_done)}


@dataclass(frozen=True)
class LoadedBandit:
    """A checkpoint's estimates."""

    run_directory: Path
    checkpoint: Path
    weights: Weights

    @classmethod
    def of(cls, run: StoredRun) -> LoadedBandit:
        checkpoint, _ = checkpoint_of(run)
        return cls(run.directory, checkpoint, load_weights(checkpoint))

    def evaluate(self, options: EvalOptions) -> dict[str, Any]:
        raise BadInput(_judged(self.run_directory))

    def export(self, options: ExportOptions) -> Exported:
        raise BadInput(elsewhere(self.run_directory))

    def write_beginning(self, directory: Path, origin: Mapping[str, Any]) -> None:
        raise BadInput(elsewhere(self.run_directory))


def _judged(run_directory: Path) -> str:
    return f"{run_directory}: a bandit's run is judged while it learns: {run_directory / 'summary.json'} has its regret"


def elsewhere(run_directory: Path) -> str:
    return f"{run_directory}: a bandit's run: it has estimates of arms, and no policy for an env"


def _closing_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    regret = (
        f"regret {summary['regret']:.4g} in all, {summary['regret_per_pull']:.4g} a pull, the mean over the problems"
    )
    return [f"{steps_line(summary)} (pulls)", regret, report_line(run_directory)]


BANDIT = RunKind(
    settings=SETTINGS,
    counts=PLAYED,
    make=BanditRun,
    load=LoadedBandit.of,
    elsewhere=elsewhere,
    closing_lines=_closing_lines,
    console=online_console,
    eval_line=lambda result: percent(None),
    data="a bandit",
    evaluates=False,
)
