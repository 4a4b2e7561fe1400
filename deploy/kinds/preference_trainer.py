"""Reward models from preferences while the policy learns (Christiano et al., 2017, arXiv:1706.03741): segments of what
it does go to raters, their labels into a reward model, and each new version of that into the service. When labels are
due, and who waits for them, is runtimes/preference_gate.py's."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from rollcall.actors.control.segments import SegmentsOf, Stretch, ToEnv, episode_stretches
from rollcall.actors.trajectory_scoring import RewardEndpoint
from rollcall.cluster.errors import RewardError
from rollcall.cluster.inputs.import_path import import_object
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.preference_config import RewardTrainConfig, SegmentModelConfig
from rollcall.deploy.config.preference_settings import PreferencesConfig
from rollcall.deploy.preferences.data import PreferenceDataConfig
from rollcall.learners.algorithms.preferences.bradley_terry import BradleyTerryConfig
from rollcall.learners.loop.config import LearnerConfig
from rollcall.reward_service.client import RewardClient
from rollcall.reward_service.labelling.client import LabelClient
from rollcall.reward_service.labelling.leases import LabelQueue
from rollcall.reward_service.labelling.protocol import Progress
from rollcall.reward_service.models.reward_model_files import RewardModelCard, load_reward_model, save_segment_model
from rollcall.reward_service.models.reward_models import SegmentArchitecture, SegmentRewardModel, Statistics
from rollcall.reward_service.preferences.files import Preference, SegmentPair, write_preferences
from rollcall.reward_service.preferences.records import TAKEN, Comparison, SegmentCandidate, shows_taken_actions
from rollcall.reward_service.protocol import ArrayField, Segment
from rollcall.reward_service.raters.rater import label_all
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater

CURRENT = "current"  # of the run's reward models: the version that the service loads when it starts
UNTRAINED = "untrained"
POOL = 2000  # stretches remembered, the newest
LOOK_S = 0.5  # between looks whether people have labelled
STRETCHES_S = 20.0  # within which what the policy did must have stretches to compare: it waits for them itself
BARREN_TRIES = 20
LABELS_A_BEAT = 50
HELD_OUT = 0.05  # of the labels, to report by: as many again share a segment with them, and are not learnt from either

_log = logging.getLogger("rollcall")


def first_model(directory: Path, architecture: SegmentArchitecture, *, seed: int) -> Path:
    """Where the service finds the newest reward model; before there is any, one that nobody has trained."""
    current = directory / CURRENT
    if not current.exists():
        members = architecture.members
        statistics = Statistics(mean=(0.0,) * members, std=(1.0,) * members)
        card = RewardModelCard(kind="segment", statistics=statistics)
        save_segment_model(SegmentRewardModel(architecture, seed=seed), directory / UNTRAINED, card)
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
class PreferenceTraining:
    """What the reward models of one run are made of, and when."""

    config: PreferencesConfig
    endpoint: RewardEndpoint
    directory: Path  # of the run's reward models
    architecture: SegmentArchitecture
    to_env: ToEnv  # as in SegmentScoring, so that raters judge what was done and the model scores what they judged
    env_id: str
    run_seed: int
    total_steps: int  # learner steps of the run

    def due(self, policy_version: int) -> int:
        """Labels that the reward model has learnt from before it scores what this version did."""
        return self.config.labels_due(policy_version / self.total_steps)

    def trainer(self, train: TrainRewardModel) -> PreferenceTrainer:
        """One that asks the run's own reward service."""
        token = self.endpoint.token or None
        return PreferenceTrainer(self, train, labels=LabelClient(self.endpoint.url, token), serve=self._serve)

    def _serve(self, model: Path) -> str:
        with RewardClient(self.endpoint.url, self.endpoint.token or None) as client:
            return client.load(self.endpoint.model, str(model)).version


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
        serve: Callable[[Path], str],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`serve`: loads a model into the service, and returns its version."""
        self._training = training
        self._config = config = training.config
        self._train = train
        self._clock = clock
        self._pause = pause
        self._seed = derive_seed(training.run_seed, "preferences", config.seed)
        self._rng = np.random.default_rng(self._seed)
        self._labels = labels
        self._serve = serve
        self._rater: SyntheticRater | None = None
        if config.true_reward is not None:
            self._rater = SyntheticRater("synthetic", import_object(config.true_reward), config.noise)
        self._pool: deque[Segment] = deque(maxlen=POOL)
        self._preferences: list[Preference] = []
        self._converted = 0  # of them, those whose actions were recorded as the policy had sampled them
        self._read_to = 0  # of the service's log of labels
        self._learnt = 0
        self._current = training.directory / CURRENT
        self._has_model = self._current.exists() and self._current.readlink() != Path(UNTRAINED)
        self._barren = 0  # times in a row that nothing new was found to ask
        self._without_stretches_since: float | None = None
        self.beats = 0  # grows for as long as work gets done

    def offer(self, trajectory: GymTrajectory) -> None:
        """Remembers the segments of whole steps of one episode each."""
        self._pool.extend(segments_of(trajectory, self._config.segment_steps, self._training.to_env))

    def advance(self, due: int) -> TrainerReport:
        """One step towards a reward model that has learnt from so many labels: asks for those that are missing, or
        trains. Where people are waited for it returns after LOOK_S.

        Raises:
          RewardError: when the service does not answer, or there is nothing that raters could be asked.
        """
        self._read_labels()
        if len(self._preferences) < due and not self._ask(due - len(self._preferences)):
            self._pause(LOOK_S)
            self._read_labels()
        if len(self._preferences) >= due:
            self._barren = 0
            self._learn(due)
        elif self._barren >= BARREN_TRIES:
            raise RewardError(
                f"{len(self._pool)} stretches give no more pairs to compare than {len(self._preferences)}, and "
                f"{due} are due: lower preferences.initial_labels, or raise actors.num_envs or unroll_length"
            )
        return TrainerReport(len(self._preferences), self._learnt)

    def _ask(self, missing: int) -> bool:
        """Has raters asked, unless they are at it. Whether labels came at once."""
        before = len(self._preferences)
        if not self._labels.progress("loop").waiting:  # skipped ones are made up for
            pairs = self._choose(missing)
            if pairs is None:
                return False
            self._barren = 0 if self._labels.add(pairs) else self._barren + 1
        if self._rater is not None:
            while label_all(self._rater, self._labels, limit=LABELS_A_BEAT):
                self.beats += 1
        self._read_labels()
        return len(self._preferences) > before

    def _read_labels(self) -> None:
        found, self._read_to = self._labels.labelled(self._read_to)
        while found:
            self._preferences += [self._as_taken(preference) for preference in found]
            found, self._read_to = self._labels.labelled(self._read_to)

    def _as_taken(self, preference: Preference) -> Preference:
        if not isinstance(preference, SegmentPair) or shows_taken_actions(preference):
            return preference
        if not self._converted:
            _log.warning("labels of an earlier release: their actions are turned into those that the env took")
        self._converted += 1
        return with_taken_actions(preference, self._training.to_env)

    def _choose(self, count: int) -> list[Comparison] | None:
        """Pairs from the pool; of several times as many, those that the ensemble disagrees on most. None where there
        are no two segments yet."""
        pool = list(self._pool)
        if len(pool) < 2:
            self._wait_for_stretches()
            return None
        self._without_stretches_since = None
        wanted = count * (self._config.selection if self._has_model else 1)
        pairs = [tuple(self._rng.choice(len(pool), 2, replace=False).tolist()) for _ in range(wanted)]
        if self._has_model:
            disagreement = self._disagreement(pool, pairs)
            pairs = [pairs[index] for index in np.argsort(-disagreement, kind="stable")[:count]]
        comparisons = []
        for left, right in pairs:
            given = [SegmentCandidate(segment=pool[index], env_id=self._training.env_id) for index in (left, right)]
            if given[0].digest() != given[1].digest():
                comparisons.append(Comparison.of(given, metadata={"question": self._config.question, **TAKEN}))
        return comparisons

    def _wait_for_stretches(self) -> None:
        """Raises RewardError: when what the policy did has had none for too long."""
        if self._without_stretches_since is None:
            self._without_stretches_since = self._clock()
        elif self._clock() - self._without_stretches_since > STRETCHES_S:
            raise RewardError(
                f"no two stretches of {self._config.segment_steps} steps within an episode were seen: lower "
                "preferences.segment_steps, or let episodes have one length (env.fixed_episode_steps)"
            )

    def _disagreement(self, pool: Sequence[Segment], pairs: Sequence[tuple[int, ...]]) -> Array:
        """[P]: the variance over the ensemble's members of the probability that the first of a pair is preferred."""
        module = load_reward_model(self._current).module
        assert isinstance(module, SegmentRewardModel)
        arrays = [module.architecture.arrays(segment) for segment in pool]
        observations = torch.from_numpy(np.concatenate([observed for observed, _ in arrays]))
        actions = torch.from_numpy(np.concatenate([acted for _, acted in arrays]))
        with torch.inference_mode():
            sums = module(observations, actions).unflatten(1, (len(pool), self._config.segment_steps)).sum(-1)
            left, right = torch.tensor(pairs).T
            variances: Array = torch.sigmoid(sums[:, left] - sums[:, right]).var(0, correction=0).numpy()
        return variances

    def _learn(self, due: int) -> None:
        """A reward model from all labels so far, and into service."""
        # A model that an earlier release made of the labels as they were is not one of the labels as they are now.
        name = f"labels-{len(self._preferences):05d}{'-taken' if self._converted else ''}"
        directory = self._training.directory
        labels = directory / f"{name}.jsonl"
        if not labels.exists():
            write_preferences(labels, self._preferences)
        model = self._train(self._run_config(labels, name), directory / name, on_step=self._beat)
        if model is None:
            return
        _point(self._current, str(model.relative_to(directory)))
        version = self._serve(model)
        _log.info("reward model %s, from %d labels, is in service", version, len(self._preferences))
        self._learnt, self._has_model = due, True

    def _beat(self) -> None:
        self.beats += 1

    def _run_config(self, labels: Path, name: str) -> RewardTrainConfig:
        config, architecture = self._config, self._training.architecture
        return RewardTrainConfig(
            name=name,
            seed=self._seed % 2**31,
            data=PreferenceDataConfig(train=str(labels), eval_fraction=HELD_OUT),
            model=SegmentModelConfig(
                kind="segment",
                members=config.members,
                hidden_sizes=config.hidden_sizes,
                num_actions=architecture.num_actions,
                first_action=architecture.first_action,
            ),
            loss=BradleyTerryConfig(noise=config.random_share),
            batch_size=32,
            epochs=config.epochs,
            learner=LearnerConfig(learning_rate=1e-3, max_grad_norm=1.0),
        )


def with_taken_actions(pair: SegmentPair, to_env: ToEnv) -> SegmentPair:
    """A label that an earlier release recorded holds the actions that were sampled: it gets those that were done."""
    left, right = (
        segment.model_copy(update={"actions": ArrayField.of(to_env(segment.actions.array()))})
        for segment in pair.segments
    )
    about = pair.details.get("metadata")
    metadata = {**(about if isinstance(about, dict) else {}), **TAKEN}
    return replace(pair, segments=(left, right), details={**pair.details, "metadata": metadata})


def segments_of(trajectory: GymTrajectory, length: int, to_env: ToEnv) -> Iterator[Segment]:
    """Stretches of `length` steps, each of one episode; they begin at multiples of it, and so never overlap."""
    segment_of = SegmentsOf(trajectory, to_env)
    for episode in episode_stretches(trajectory):
        first = math.ceil(episode.begin / length) * length
        for begin in range(first, episode.end - length + 1, length):
            yield segment_of(Stretch(episode.env, begin, begin + length))


def _point(link: Path, target: str) -> None:
    aside = link.with_name(f".{link.name}.new")
    aside.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    aside.symlink_to(target)
    aside.replace(link)
