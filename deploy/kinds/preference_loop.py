"""Learning from preferences while the policy trains (Christiano et al., 2017, arXiv:1706.03741): stretches of what it
does go to raters, their labels into a reward model, and each new version of that into the service. The policy waits
when it would run ahead of the labels. Must never know what the policy learns with."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollcall.actors.control.segments import SegmentsOf, Stretch, ToEnv, episode_stretches
from rollcall.actors.scoring import RewardEndpoint, TrajectoryScorer
from rollcall.cluster.errors import RewardError, RewardTimeout, RollcallError
from rollcall.cluster.inputs.import_path import import_object
from rollcall.cluster.messages.records import GymTrajectory, Produced
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.preference_config import RewardTrainConfig, SegmentModelConfig
from rollcall.deploy.config.preference_settings import PreferencesConfig
from rollcall.deploy.kinds.kind import NestedRun
from rollcall.deploy.kinds.preferences.reward_model import MODEL, REWARD_MODEL
from rollcall.deploy.preferences.data import PreferenceDataConfig
from rollcall.learners.algorithms.preferences.bradley_terry import BradleyTerryConfig
from rollcall.learners.loop.learner import LearnerConfig
from rollcall.reward_service.client import RewardClient
from rollcall.reward_service.labelling.client import LabelClient
from rollcall.reward_service.models.reward_model_files import RewardModelCard, load_reward_model, save_segment_model
from rollcall.reward_service.models.reward_models import SegmentArchitecture, SegmentRewardModel, Statistics
from rollcall.reward_service.preferences.files import Preference, SegmentPair, write_preferences
from rollcall.reward_service.preferences.records import TAKEN, Comparison, SegmentCandidate, shows_taken_actions
from rollcall.reward_service.protocol import ArrayField, Segment
from rollcall.reward_service.raters.rater import label_all
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater

CURRENT = "current"  # of the run's reward models: the version that the service loads when it starts
POOL = 2000  # stretches remembered, the newest
LOOK_S = 0.5  # between looks whether people have labelled
STRETCHES_S = 20.0  # within which what the policy did must have stretches to compare: it waits for them itself
BARREN_TRIES = 20
HELD_OUT = 0.05  # of the labels, to report by: as many again share a segment with them, and are not learnt from either

_log = logging.getLogger("rollcall")


def first_model(directory: Path, architecture: SegmentArchitecture, *, seed: int) -> Path:
    """Where the service finds the newest reward model; before there is any, one that nobody has trained."""
    current = directory / CURRENT
    if not current.exists():
        members = architecture.members
        statistics = Statistics(mean=(0.0,) * members, std=(1.0,) * members)
        card = RewardModelCard(kind="segment", statistics=statistics)
        save_segment_model(SegmentRewardModel(architecture, seed=seed), directory / "untrained", card)
        _point(current, "untrained")
    return current


class PreferenceScorer:
    """A TrajectoryScorer for a run from preferences: what it scores is offered to raters first, and scored by a reward
    model that has learnt from as many labels as are due by then."""

    def __init__(self, scorer: TrajectoryScorer, loop: PreferenceLoop) -> None:
        self._scorer = scorer
        self._loop = loop

    def score(self, produced: Produced, trajectory: GymTrajectory) -> tuple[Produced, GymTrajectory]:
        self._loop.offer(trajectory)
        self._loop.wait_for(trajectory.policy_version)
        scored: tuple[Produced, GymTrajectory] = self._scorer.score(produced, trajectory)
        return scored


class PreferenceLoop:
    """Asks, collects, trains, swaps; on a thread of its own. Labels are kept by the service, and outlive it."""

    def __init__(
        self,
        config: PreferencesConfig,
        endpoint: RewardEndpoint,
        directory: Path,
        *,
        architecture: SegmentArchitecture,
        to_env: ToEnv,
        env_id: str,
        total_steps: int,
        run_seed: int,
    ) -> None:
        """`directory`: of the run's reward models. `to_env`: as in SegmentScoring, so that raters judge what was done
        and the model scores what they judged. `total_steps`: learner steps of the run."""
        self._config = config
        self._architecture = architecture
        self._to_env = to_env
        self._endpoint = endpoint
        self._directory = directory
        self._env_id = env_id
        self._total_steps = total_steps
        self._seed = derive_seed(run_seed, "preferences", config.seed)
        self._rng = np.random.default_rng(self._seed)
        self._labels = LabelClient(endpoint.url, endpoint.token or None)
        self._rater: SyntheticRater | None = None
        if config.taste is not None:
            self._rater = SyntheticRater("synthetic", import_object(config.taste), config.noise)
        self._pool: deque[Segment] = deque(maxlen=POOL)
        self._preferences: list[Preference] = []
        self._converted = 0  # of them, those whose actions were recorded as the policy had sampled them
        self._read_to = 0  # of the service's log of labels
        self._due = 0
        self._learnt = 0  # labels that the model in service has learnt from
        self._problem: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="preferences", daemon=True).start()

    def offer(self, trajectory: GymTrajectory) -> None:
        """Remembers the stretches of whole steps of one episode each."""
        found = list(_segments(trajectory, self._config.segment_steps, self._to_env))
        with self._changed:
            self._pool.extend(found)
            self._changed.notify_all()

    def wait_for(self, version: int) -> None:
        """Until the reward model has learnt from the labels that are due at this policy version.

        Raises:
          RewardError: when they do not come within the patience.
          Exception: what ended the loop.
        """
        due = self._config.labels_due(version / self._total_steps)
        deadline = time.monotonic() + self._config.patience_s
        with self._changed:
            self._due = max(self._due, due)
            self._changed.notify_all()
            while self._learnt < due:
                if self._problem is not None:
                    raise self._problem
                if time.monotonic() > deadline:
                    raise RewardTimeout(
                        f"{len(self._preferences)} of {due} labels came within {self._config.patience_s:.0f} s: label "
                        "at the run's page, or raise preferences.patience_s; then rollcall resume"
                    )
                self._changed.wait(1.0)

    def _run(self) -> None:
        try:
            self._read_labels()
            while True:
                with self._changed:
                    while self._learnt >= self._due:
                        self._changed.wait(1.0)
                    due = self._due
                self._collect(due)
                self._train(due)
        except BaseException as error:
            _log.exception("learning from preferences ended")
            with self._changed:
                self._problem = error if isinstance(error, RollcallError) else RewardError(f"preferences: {error!r}")
                self._changed.notify_all()

    def _collect(self, due: int) -> None:
        """Until so many labels are there, by asking and waiting."""
        barren = 0  # times in a row that nothing new was found to ask
        while len(self._preferences) < due:
            missing = due - len(self._preferences)
            if not self._labels.progress("loop").waiting:  # skipped ones are made up for
                barren = 0 if self._labels.add(self._choose(missing)) else barren + 1
            if barren >= BARREN_TRIES:
                raise RewardError(
                    f"{len(self._pool)} stretches give no more pairs to compare than {len(self._preferences)}, and "
                    f"{due} are due: lower preferences.initial_labels, or raise actors.num_envs or unroll_length"
                )
            if self._rater is not None:
                label_all(self._rater, self._labels)
            else:
                time.sleep(LOOK_S)
            self._read_labels()

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
        return with_taken_actions(preference, self._to_env)

    def _choose(self, count: int) -> list[Comparison]:
        """Pairs from the pool; of several times as many, those that the ensemble disagrees on most."""
        with self._changed:
            pool = list(self._pool)
        deadline = time.monotonic() + STRETCHES_S
        while len(pool) < 2:
            if time.monotonic() > deadline:
                raise RewardError(
                    f"no two stretches of {self._config.segment_steps} steps within an episode were seen: lower "
                    "preferences.segment_steps, or let episodes have one length (env.fixed_episode_steps)"
                )
            time.sleep(LOOK_S)
            with self._changed:
                pool = list(self._pool)
        wanted = count * (self._config.selection if self._learnt else 1)
        pairs = [tuple(self._rng.choice(len(pool), 2, replace=False).tolist()) for _ in range(wanted)]
        if self._learnt:
            disagreement = self._disagreement(pool, pairs)
            pairs = [pairs[index] for index in np.argsort(-disagreement, kind="stable")[:count]]
        comparisons = []
        for left, right in pairs:
            given = [SegmentCandidate(segment=pool[index], env_id=self._env_id) for index in (left, right)]
            if given[0].digest() != given[1].digest():
                comparisons.append(Comparison.of(given, metadata={"question": self._config.question, **TAKEN}))
        return comparisons

    def _disagreement(self, pool: Sequence[Segment], pairs: Sequence[tuple[int, ...]]) -> Any:
        """[P]: the variance over the ensemble's members of the probability that the first of a pair is preferred."""
        module = load_reward_model(self._directory / CURRENT).module
        assert isinstance(module, SegmentRewardModel)
        arrays = [module.architecture.arrays(segment) for segment in pool]
        observations = torch.from_numpy(np.concatenate([observed for observed, _ in arrays]))
        actions = torch.from_numpy(np.concatenate([acted for _, acted in arrays]))
        with torch.inference_mode():
            sums = module(observations, actions).unflatten(1, (len(pool), self._config.segment_steps)).sum(-1)
            left, right = torch.tensor(pairs).T
            return torch.sigmoid(sums[:, left] - sums[:, right]).var(0, correction=0).numpy()

    def _train(self, due: int) -> None:
        """A reward model from all labels so far, and into service."""
        # A model that an earlier release made of the labels as they were is not one of the labels as they are now.
        name = f"labels-{len(self._preferences):05d}{'-taken' if self._converted else ''}"
        directory = self._directory / name
        if not (directory / MODEL).exists():
            write_preferences(self._directory / f"{name}.jsonl", self._preferences)
            config = self._training(self._directory / f"{name}.jsonl", name)
            from rollcall.deploy.drive.lifecycle import run_nested  # goes when the trainer is a process of its own

            run_nested(NestedRun(REWARD_MODEL, config, directory))
        _point(self._directory / CURRENT, f"{name}/{MODEL}")
        with RewardClient(self._endpoint.url, self._endpoint.token or None) as client:
            info = client.load(self._endpoint.model, str(directory / MODEL))
        _log.info("reward model %s, from %d labels, is in service", info.version, len(self._preferences))
        with self._changed:
            self._learnt = due
            self._changed.notify_all()

    def _training(self, labels: Path, name: str) -> RewardTrainConfig:
        config = self._config
        return RewardTrainConfig(
            name=name,
            seed=self._seed % 2**31,
            data=PreferenceDataConfig(train=str(labels), eval_fraction=HELD_OUT),
            model=SegmentModelConfig(
                kind="segment",
                members=config.members,
                hidden_sizes=config.hidden_sizes,
                num_actions=self._architecture.num_actions,
                first_action=self._architecture.first_action,
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


def _segments(trajectory: GymTrajectory, length: int, to_env: ToEnv) -> Iterator[Segment]:
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
