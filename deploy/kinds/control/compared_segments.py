"""What raters compare of a run with an env: stretches of episodes, those on which the reward models' ensemble disagrees
most; and the ensemble that learns from them (Christiano et al., 2017, arXiv:1706.03741)."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rollcall.actors.control.segments import SegmentsOf, Stretch, ToEnv, episode_stretches
from rollcall.cluster.errors import RewardError
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.deploy.config.recipe.preference_config import RewardTrainConfig, SegmentModelConfig
from rollcall.deploy.config.recipe.preference_settings import PreferencesConfig
from rollcall.deploy.kinds.preference_trainer import Wanted, current_model
from rollcall.deploy.preferences.data_config import PreferenceDataConfig
from rollcall.learners.algorithms.preferences.bradley_terry_config import BradleyTerryConfig
from rollcall.learners.loop.config import LearnerConfig
from rollcall.reward_service.models.reward_model_files import RewardModelCard, load_reward_model, save_segment_model
from rollcall.reward_service.models.reward_models import SegmentArchitecture, SegmentRewardModel, Statistics
from rollcall.reward_service.preferences.files import Preference, SegmentPair
from rollcall.reward_service.preferences.records import TAKEN, Comparison, SegmentCandidate, shows_taken_actions
from rollcall.reward_service.protocol import ArrayField, Segment

POOL = 2000  # stretches remembered, the newest
STRETCHES_S = 20.0  # within which what the policy did must have stretches to compare: it waits for them itself
HELD_OUT = 0.05  # of the labels, to report by: as many again share a segment with them, and are not learnt from either

_log = logging.getLogger("rollcall")


def first_model(directory: Path, architecture: SegmentArchitecture, *, seed: int) -> Path:
    """Where the service finds the newest reward model; before there is any, one that nobody has trained."""

    def write(untrained: Path) -> None:
        members = architecture.members
        statistics = Statistics(mean=(0.0,) * members, std=(1.0,) * members)
        card = RewardModelCard(kind="segment", statistics=statistics)
        save_segment_model(SegmentRewardModel(architecture, seed=seed), untrained, card)

    return current_model(directory, write)


@dataclass(frozen=True)
class Segments:
    """What makes a ComparedSegments."""

    config: PreferencesConfig
    architecture: SegmentArchitecture
    to_env: ToEnv  # as in SegmentScoring, so that raters judge what was done and the model scores what they judged
    env_id: str
    seed: int

    def __call__(self, clock: Callable[[], float]) -> ComparedSegments:
        return ComparedSegments(self, clock)


class ComparedSegments:
    """A Compared, of stretches of episodes."""

    def __init__(self, of: Segments, clock: Callable[[], float]) -> None:
        self._of = of
        self._config = of.config
        self._clock = clock
        self._rng = np.random.default_rng(of.seed)
        self._pool: deque[Segment] = deque(maxlen=POOL)
        self._converted = 0  # of the labels, those whose actions were recorded as the policy had sampled them
        self._without_stretches_since: float | None = None
        self.newest_version = -1

    @property
    def mark(self) -> str:
        """A model that an earlier release made of the labels as they were is not one of the labels as they are now."""
        return "-taken" if self._converted else ""

    def offer(self, trajectory: GymTrajectory) -> None:
        """Remembers the segments of whole steps of one episode each."""
        self._pool.extend(segments_of(trajectory, self._config.segment_steps, self._of.to_env))
        self.newest_version = max(self.newest_version, trajectory.policy_version)

    def choose(
        self, wanted: Wanted, *, model: Path | None, beat: Callable[[], None] = lambda: None
    ) -> list[Comparison] | None:
        """Pairs from the pool; of several times as many, those that the ensemble disagrees on most."""
        pool, count = list(self._pool), wanted.missing
        if len(pool) < 2:
            self._wait_for_stretches()
            return None
        self._without_stretches_since = None
        considered = count * (self._config.selection if model is not None else 1)
        pairs = [tuple(self._rng.choice(len(pool), 2, replace=False).tolist()) for _ in range(considered)]
        if model is not None:
            disagreement = self._disagreement(model, pool, pairs)
            pairs = [pairs[index] for index in np.argsort(-disagreement, kind="stable")[:count]]
        comparisons = []
        for left, right in pairs:
            given = [SegmentCandidate(segment=pool[index], env_id=self._of.env_id) for index in (left, right)]
            if given[0].digest() != given[1].digest():
                comparisons.append(Comparison.of(given, metadata={"question": self._config.question, **TAKEN}))
        return comparisons

    def too_few(self, wanted: Wanted) -> str:
        return (
            f"{len(self._pool)} stretches give no more pairs to compare than {wanted.labels}, and {wanted.due} are "
            "due: lower preferences.initial_labels, or raise actors.num_envs or unroll_length"
        )

    def as_learnt(self, preference: Preference) -> Preference:
        if not isinstance(preference, SegmentPair) or shows_taken_actions(preference):
            return preference
        if not self._converted:
            _log.warning("labels of an earlier release: their actions are turned into those that the env took")
        self._converted += 1
        return with_taken_actions(preference, self._of.to_env)

    def run_config(
        self, name: str, labels: Path, preferences: Sequence[Preference], *, new: int, last: Path | None
    ) -> RewardTrainConfig:
        """Of an ensemble that begins anew: it is small."""
        config, architecture = self._config, self._of.architecture
        return RewardTrainConfig(
            name=name,
            seed=self._of.seed % 2**31,
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

    def _wait_for_stretches(self) -> None:
        """Raises RewardError: when what the policy did has had none for too long."""
        if self._without_stretches_since is None:
            self._without_stretches_since = self._clock()
        elif self._clock() - self._without_stretches_since > STRETCHES_S:
            raise RewardError(
                f"no two stretches of {self._config.segment_steps} steps within an episode were seen: lower "
                "preferences.segment_steps, or let episodes have one length (env.fixed_episode_steps)"
            )

    def _disagreement(self, model: Path, pool: Sequence[Segment], pairs: Sequence[tuple[int, ...]]) -> Array:
        """[P]: the variance over the ensemble's members of the probability that the first of a pair is preferred."""
        module = load_reward_model(model).module
        assert isinstance(module, SegmentRewardModel)
        arrays = [module.architecture.arrays(segment) for segment in pool]
        observations = torch.from_numpy(np.concatenate([observed for observed, _ in arrays]))
        actions = torch.from_numpy(np.concatenate([acted for _, acted in arrays]))
        with torch.inference_mode():
            sums = module(observations, actions).unflatten(1, (len(pool), self._config.segment_steps)).sum(-1)
            left, right = torch.tensor(pairs).T
            variances: Array = torch.sigmoid(sums[:, left] - sums[:, right]).var(0, correction=0).numpy()
        return variances


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
