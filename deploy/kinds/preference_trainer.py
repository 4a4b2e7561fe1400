"""Reward models from preferences while the policy learns (Christiano et al., 2017, arXiv:1706.03741): of what it does
some goes to raters, their labels into a reward model, and each new version of that into the service. What is compared
is the kind's (`Compared`); when labels are due, and who waits for them, is runtimes/preference_gate.py's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rollcall.actors.trajectory_scoring import RewardEndpoint
from rollcall.cluster.errors import RewardError, RewardTimeout, RewardUnavailable
from rollcall.deploy.config.recipe.preference_config import RewardTrainConfig
from rollcall.deploy.config.recipe.preference_settings import AskedConfig
from rollcall.deploy.kinds.raters import Program
from rollcall.deploy.preferences.fresh_labels import FreshLabels, Judged, agreement_of, canary_of
from rollcall.deploy.preferences.round_book import Round, book_round, held_out_of, rounds_before
from rollcall.reward_service.client import RewardClient
from rollcall.reward_service.labelling.client import LabelClient
from rollcall.reward_service.labelling.leases import LabelQueue
from rollcall.reward_service.labelling.protocol import Progress
from rollcall.reward_service.preferences.files import Preference, write_preferences
from rollcall.reward_service.preferences.records import Comparison
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.raters.rater import label_all

CURRENT = "current"  # of the run's reward models: the version that the service loads when it starts
UNTRAINED = "untrained"
LOOK_S = 0.5  # between looks whether people have labelled
BARREN_TRIES = 20
LABELS_A_BEAT = 2  # of each that is asked side by side: a judge may take two minutes for one (SILENT_S of the gate)
_CANARY_TOLERANCE = 1e-3  # between a service's score and the model's own, of a score of one deviation

_log = logging.getLogger("rollcall")


def current_model(directory: Path, write_untrained: Callable[[Path], object]) -> Path:
    """Where the service finds the newest reward model; before there is any, one that nobody has trained."""
    current = directory / CURRENT
    if not current.exists():
        write_untrained(directory / UNTRAINED)
        _point(current, UNTRAINED)
    return current


class Labels(LabelQueue, Protocol):
    """A LabelClient: raters are asked, or are programs themselves, and what they said is read from a log."""

    def add(self, comparisons: Iterable[Comparison]) -> int: ...
    def progress(self, rater: str) -> Progress: ...
    def labelled(self, after: int = 0) -> tuple[list[Preference], int]: ...


class TrainRewardModel(Protocol):
    """Carries out a run of its own in a directory of this run."""

    def __call__(self, config: RewardTrainConfig, directory: Path, *, on_step: Callable[[], None]) -> Path | None:
        """The model's directory, as it is where that run is complete already; None where it was stopped before."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What a round still asks raters for."""

    missing: int  # comparisons
    labels: int  # that there are
    due: int  # labels that there are to be
    tries: int  # in a row that brought nothing that had not been asked before


class Compared(Protocol):
    """What of the policy's doing raters compare, and what a reward model is made of. In the trainer's process."""

    @property
    def mark(self) -> str:
        """Of a reward model that is made of other labels than an earlier release's of so many."""

    @property
    def newest_version(self) -> int:
        """Of the policy, in what was offered; -1 before."""

    def offer(self, trajectory: Any) -> None:
        """Remembers what may be compared of it."""

    def choose(
        self, wanted: Wanted, *, model: Path | None, beat: Callable[[], None] = lambda: None
    ) -> list[Comparison] | None:
        """What raters are asked; those that were asked before are passed over. `model`: the newest reward model. None
        where there is too little yet. `beat`: called at times while it works on.

        Raises:
          RewardError: when there has been too little for too long.
        """

    def too_few(self, wanted: Wanted) -> str:
        """Why nothing new is found to ask, and what to do about it."""

    def as_learnt(self, preference: Preference) -> Preference:
        """A label that an earlier release recorded, as it would be recorded now."""

    def run_config(
        self, name: str, labels: Path, preferences: Sequence[Preference], *, new: int, last: Path | None
    ) -> RewardTrainConfig:
        """Of the run that trains on these, which the file `labels` holds, and of which so many are new to `last`, the
        model of the round before."""


@dataclass(frozen=True)
class PreferenceTraining:
    """What the reward models of one run are made of, and when."""

    config: AskedConfig
    endpoint: RewardEndpoint
    directory: Path  # of the run's reward models
    total_steps: int  # learner steps of the run
    compared: Callable[[Callable[[], float]], Compared]  # by a clock
    raters: Callable[[], Sequence[Program]]
    asked_about_each: int = 1  # raters, about one comparison

    def due(self, policy_version: int) -> int:
        """Labels that the reward model has learnt from before it scores what this version did."""
        return self.config.labels_due(policy_version / self.total_steps)

    def trainer(self, train: TrainRewardModel) -> PreferenceTrainer:
        """One that asks the run's own reward service."""
        token = self.endpoint.token or None
        return PreferenceTrainer(self, train, labels=LabelClient(self.endpoint.url, token), serve=self._serve)

    def _serve(self, model: Path, items: Sequence[ScoreItem]) -> str:
        """Raises RewardError: where the service does not score as the model does."""
        with RewardClient(self.endpoint.url, self.endpoint.token or None) as client:
            version = client.load(self.endpoint.model, str(model)).version
            if items:
                found = client.score_group(items, model=self.endpoint.model, deadline_s=self.endpoint.patience_s)
                scores = [result.score for result in found.results]
                for own, served in zip(canary_of(model, items), scores, strict=True):
                    if served is None or abs(own - served) > _CANARY_TOLERANCE * (1 + abs(own)):
                        raise RewardError(f"reward model {version}: the service scores {served}, and its model {own}")
            return version


@dataclass(frozen=True, slots=True)
class TrainerReport:
    """How far the reward models of a run have come."""

    num_labels: int
    learnt: int  # of the labels that were asked for, how many the model in service has learnt from


class PreferenceTrainer:
    """Asks raters, collects their labels, trains reward models and puts them into service, a step at a time. What it
    may lose is on the disk: labels are the service's, models are the run's."""

    def __init__(
        self,
        training: PreferenceTraining,
        train: TrainRewardModel,
        *,
        labels: Labels,
        serve: Callable[[Path, Sequence[ScoreItem]], str],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        judge: Judged | None = None,
    ) -> None:
        """`serve`: loads a model into the service, sees that it scores these as the model itself does, and returns its
        version. `judge`: how right a model is about labels; by default it is loaded for that."""
        self._training = training
        self._train = train
        self._pause = pause
        self._labels = labels
        self._serve = serve
        self._raters = training.raters()
        self._compared = training.compared(clock)
        self._judge = judge
        self._preferences: list[Preference] = []
        self._read_to = 0  # of the service's log of labels
        self._learnt = 0
        self._current = training.directory / CURRENT
        self._has_model = self._current.exists() and self._current.readlink() != Path(UNTRAINED)
        self._barren = 0  # times in a row that nothing new was found to ask
        self.beats = 0  # grows for as long as work gets done

    def offer(self, trajectory: Any) -> None:
        """Remembers what of it may be compared."""
        self._compared.offer(trajectory)

    def advance(self, due: int) -> TrainerReport:
        """One step towards a reward model that has learnt from so many labels: asks for those that are missing, or
        trains. Where people are waited for it returns after LOOK_S.

        Raises:
          RewardError: when the service does not answer, or there is nothing that raters could be asked.
        """
        self._read_labels()
        if len(self._preferences) < due and not self._ask(due):
            self._pause(LOOK_S)
            self._read_labels()
        if len(self._preferences) >= due:
            self._barren = 0
            self._learn(due)
        elif self._barren >= BARREN_TRIES:
            raise RewardError(self._compared.too_few(self._wanted(due)))
        return TrainerReport(len(self._preferences), self._learnt)

    def _wanted(self, due: int) -> Wanted:
        have = len(self._preferences)
        return Wanted(-(-(due - have) // self._training.asked_about_each), have, due, self._barren)

    def _ask(self, due: int) -> bool:
        """Has raters asked, unless they are at it. Whether labels came at once."""
        before = len(self._preferences)
        if not self._labels.progress("loop").waiting:  # skipped ones are made up for
            model = self._current if self._has_model else None
            chosen = self._compared.choose(self._wanted(due), model=model, beat=self._beat)
            if chosen is None:
                return False
            self._barren = 0 if self._labels.add(chosen) else self._barren + 1
        for program in self._raters:
            self._label(program)
        self._read_labels()
        return len(self._preferences) > before

    def _label(self, program: Program) -> None:
        """Raises RewardError: the program does not answer, after all the time that it is given for one comparison."""
        try:
            while label_all(
                program.rater, self._labels, limit=LABELS_A_BEAT * program.at_once, at_once=program.at_once
            ):
                self._beat()
        except (RewardUnavailable, RewardTimeout) as error:
            raise type(error)(
                f"the rater {program.rater.name} does not answer: {error}; all labels so far are kept: see that it "
                "answers, then go on with rollcall resume"
            ) from None

    def _read_labels(self) -> None:
        found, self._read_to = self._labels.labelled(self._read_to)
        while found:
            self._preferences += [self._compared.as_learnt(preference) for preference in found]
            found, self._read_to = self._labels.labelled(self._read_to)

    def _learn(self, due: int) -> None:
        """A reward model from so many labels, and into service: the same one whenever it is made again."""
        directory, learnt = self._training.directory, self._preferences[:due]
        name = f"labels-{due:05d}{self._compared.mark}"
        labels = directory / f"{name}.jsonl"
        if not labels.exists():
            write_preferences(labels, learnt)
        before = max(self._made_before(due), default=(0, None), key=lambda found: found[0])
        fresh = FreshLabels(learnt[before[0] :], self._judge)
        config = self._compared.run_config(name, labels, learnt, new=len(fresh), last=before[1])
        model = self._train(config, directory / name, on_step=self._beat)
        if model is None:
            return
        last_right, right = fresh.accuracy(before[1]), fresh.accuracy(model)
        kept = model
        if before[1] is not None and last_right and right and right.high < last_right.low:
            kept = before[1]
            _log.warning(
                "reward model %s is right about %.1f%% of the newest labels, and the one before it about %.1f%%: that "
                "one stays in service",
                *(name, 100 * right.accuracy, 100 * last_right.accuracy),
            )
        _point(self._current, str(kept.relative_to(directory)))
        version = self._serve(kept, fresh.items())
        _log.info("reward model %s, from %d labels, is in service", version, due)
        found = Round(
            labels=due,
            new_labels=len(fresh),
            policy_version=max(0, self._compared.newest_version),
            model_version=version,
            swapped_in=kept == model,
            fresh=None if last_right is None else last_right.as_dict(),
            held_out=held_out_of(model),
            agreement=agreement_of(learnt[before[0] :]),
        )
        book_round(directory, found)
        self._learnt, self._has_model = due, True

    def _made_before(self, due: int) -> Iterator[tuple[int, Path | None]]:
        """(labels, model) of the rounds that are complete."""
        yield from rounds_before(self._training.directory, due, self._compared.mark)

    def _beat(self) -> None:
        self.beats += 1


def _point(link: Path, target: str) -> None:
    aside = link.with_name(f".{link.name}.new")
    aside.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    aside.symlink_to(target)
    aside.replace(link)
