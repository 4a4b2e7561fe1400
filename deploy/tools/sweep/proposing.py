"""Who says which settings to try next, and which trials to give up: a grid, or Optuna, whose study is a file in the
sweep's directory, so that a sweep that was cut off goes on."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rollcall.cluster.errors import BadInput
from rollcall.deploy.tools.sweep.space import Choices, Dimension, grid

STUDY = "study.log"  # of a sweep's directory: Optuna's journal
STARTUP_TRIALS = 4  # that are drawn at random, and never given up
WARMUP_MILESTONES = 2  # before which nothing is given up: a run's first tenth says little


@dataclass(frozen=True)
class Proposal:
    """Settings to try."""

    number: int
    settings: Mapping[str, Any]


class Proposer(Protocol):
    """Asked by several threads."""

    def next(self) -> Proposal | None:
        """None: there are no more."""

    def hopeless(self, proposal: Proposal, value: float, milestone: int) -> bool:
        """Whether to give a trial up, whose training reports `value` at a milestone (1, 2, ...)."""

    def told(self, proposal: Proposal, value: float | None, *, pruned: bool) -> None:
        """What came of it. None: it failed, or was pruned."""


class Grid:
    """Every combination, once. It gives nothing up."""

    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        self._left = [Proposal(number, settings) for number, settings in enumerate(grid(dimensions))]
        self._lock = threading.Lock()

    def next(self) -> Proposal | None:
        with self._lock:
            return self._left.pop(0) if self._left else None

    def hopeless(self, proposal: Proposal, value: float, milestone: int) -> bool:
        return False

    def told(self, proposal: Proposal, value: float | None, *, pruned: bool) -> None: ...


class OptunaSearch:
    """TPE over the dimensions; a trial whose training is below the median of the others' at a milestone is given up."""

    def __init__(self, dimensions: Sequence[Dimension], *, trials: int, seed: int, directory: Path) -> None:
        """Raises BadInput: where Optuna is not installed."""
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ModuleNotFoundError:
            raise BadInput("a search needs the package optuna: pip install 'rollcall-rl[sweep]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._dimensions = dimensions
        self._trials = trials
        self._lock = threading.Lock()
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_MILESTONES)
        self._study = optuna.create_study(
            study_name="sweep",
            storage=JournalStorage(JournalFileBackend(str(directory / STUDY))),
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
            pruner=pruner,
            direction="maximize",
            load_if_exists=True,
        )
        known = self._study.get_trials(deepcopy=False)
        self._open = [t.number for t in known if t.state == optuna.trial.TrialState.RUNNING]
        self._begun = len(known)

    def next(self) -> Proposal | None:
        with self._lock:
            if self._open:  # of a sweep that was cut off
                number = self._open.pop(0)
                params = self._study.get_trials(deepcopy=False)[number].params
                if all(d.setting in params for d in self._dimensions):
                    return Proposal(number, {d.setting: _value(d, params[d.setting]) for d in self._dimensions})
                self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)  # cut off while it was drawn
            if self._begun >= self._trials:
                return None
            self._begun += 1
            trial = self._study.ask()
            return Proposal(trial.number, {d.setting: _drawn(trial, d) for d in self._dimensions})

    def hopeless(self, proposal: Proposal, value: float, milestone: int) -> bool:
        with self._lock:
            frozen = self._study.get_trials(deepcopy=False)[proposal.number]
            trial = self._optuna.trial.Trial(self._study, frozen._trial_id)
            trial.report(value, milestone)
            return bool(trial.should_prune())

    def told(self, proposal: Proposal, value: float | None, *, pruned: bool) -> None:
        states = self._optuna.trial.TrialState
        with self._lock:
            if value is not None:
                self._study.tell(proposal.number, value)
            else:
                self._study.tell(proposal.number, state=states.PRUNED if pruned else states.FAIL)


def _drawn(trial: Any, dimension: Dimension) -> Any:
    if isinstance(dimension, Choices):
        return _value(dimension, trial.suggest_categorical(dimension.setting, list(range(len(dimension.values)))))
    if dimension.is_whole:
        return trial.suggest_int(dimension.setting, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(dimension.setting, dimension.low, dimension.high, log=dimension.log)


def _value(dimension: Dimension, drawn: Any) -> Any:
    """Optuna knows choices by their places: a value may be a list."""
    return dimension.values[drawn] if isinstance(dimension, Choices) else drawn
