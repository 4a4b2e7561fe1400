"""Whole episodes of an evaluation as a set to learn from, in a file: written, read, and held against a run's env."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rollcall.actors.control import minari_sets
from rollcall.actors.envs.observations import Space
from rollcall.actors.envs.plain_spaces import alike, space_of, space_text
from rollcall.actors.envs.vector import Step
from rollcall.cluster.errors import BadInput, WireError
from rollcall.cluster.files import write_aside
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.recorded import ActedBy, RecordedEpisodes
from rollcall.cluster.messages.wire import from_bytes, to_bytes

SUFFIX = ".safetensors"


@dataclass
class _Taken:
    """One step of a wave: arrays are [B, ...]."""

    observations: dict[str, Array]
    actions: Array
    action_mask: Array | None
    rewards: Array
    terminated: Array
    truncated: Array
    mask: Array


@dataclass
class EpisodeRecorder:
    """Takes down the episodes of an evaluation, wave after wave."""

    _steps: list[_Taken] = field(default_factory=list)  # of the wave under way
    _finals: dict[int, dict[str, Array]] = field(default_factory=dict)  # of its envs
    _episodes: list[tuple[_Taken, dict[str, Array]]] = field(default_factory=list)

    def take(self, observations: Mapping[str, Array], action_mask: Array | None, actions: Array, follow: Step) -> None:
        """One step: what was shown and done before it, and what followed."""
        self._steps.append(
            _Taken(
                observations={name: array.copy() for name, array in observations.items()},
                actions=actions.copy(),
                action_mask=None if action_mask is None else action_mask.copy(),
                rewards=follow.rewards.copy(),
                terminated=follow.terminated.copy(),
                truncated=follow.truncated.copy(),
                mask=follow.mask.copy(),
            )
        )
        for row, env in enumerate(follow.final_envs.tolist()):
            self._finals[env] = {name: array[row].copy() for name, array in follow.final_observations.items()}

    def end_wave(self, shown: Mapping[str, Array]) -> None:
        """The episodes that began together are over. `shown`: to those that were left before their end."""
        for env in range(len(self._steps[0].mask)):
            own = [step for step in self._steps if step.mask[env]]
            masks = [step.action_mask for step in own]
            shape = next((mask[env].shape for mask in masks if mask is not None), None)
            taken = _Taken(
                observations={name: np.stack([s.observations[name][env] for s in own]) for name in shown},
                actions=np.stack([step.actions[env] for step in own]),
                action_mask=None
                if shape is None
                else np.stack([np.ones(shape, bool) if mask is None else mask[env] for mask in masks]),
                rewards=np.array([step.rewards[env] for step in own], np.float32),
                terminated=np.array([step.terminated[env] for step in own], bool),
                truncated=np.array([step.truncated[env] for step in own], bool),
                mask=np.ones(len(own), bool),
            )
            if env not in self._finals:
                taken.truncated[-1] = True
            final = self._finals.get(env) or {name: array[env].copy() for name, array in shown.items()}
            self._episodes.append((taken, final))
        self._steps, self._finals = [], {}

    def recorded(
        self, *, env: str, observation_space: Space, action_space: Space, acted_by: ActedBy
    ) -> RecordedEpisodes:
        """All of it. `observation_space`: as a policy is shown it."""
        steps = [taken for taken, _ in self._episodes]
        masked = any(taken.action_mask is not None for taken in steps)
        return RecordedEpisodes(
            env=env,
            observation_space=space_text(observation_space),
            action_space=space_text(action_space),
            acted_by=acted_by,
            observations={
                name: np.concatenate([taken.observations[name] for taken in steps]) for name in steps[0].observations
            },
            actions=np.concatenate([taken.actions for taken in steps]),
            rewards=np.concatenate([taken.rewards for taken in steps]),
            terminated=np.concatenate([taken.terminated for taken in steps]),
            truncated=np.concatenate([taken.truncated for taken in steps]),
            episode_ends=np.cumsum([len(taken.rewards) for taken in steps]).astype(np.int64),
            last_observations={
                name: np.stack([final[name] for _, final in self._episodes]) for name in self._episodes[0][1]
            },
            action_mask=_joined_masks(steps) if masked else None,
        )


def _joined_masks(steps: list[_Taken]) -> Array:
    shape = next(taken.action_mask.shape[1:] for taken in steps if taken.action_mask is not None)
    masks = [np.ones((len(t.rewards), *shape), bool) if t.action_mask is None else t.action_mask for t in steps]
    return np.concatenate(masks)


def check_target(target: str) -> None:
    """Before anything is recorded for it.

    Raises:
      BadInput: where `target` cannot be written.
    """
    if minari_sets.is_named(target):
        minari_sets.check_new(target)
        return
    path = Path(target)
    if path.suffix != SUFFIX:
        raise BadInput(f"{target}: a recorded set is a {SUFFIX} file: name it {path.with_suffix(SUFFIX).name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write {target}: {error.strerror or error}") from None


def write_recorded(target: str, recorded: RecordedEpisodes) -> None:
    """To a file, in one move, or into a Minari data set.

    Raises:
      BadInput: where it cannot be written.
    """
    if minari_sets.is_named(target):
        minari_sets.write(target, recorded)
        return
    try:
        write_aside(Path(target), to_bytes(recorded))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from None


def read_recorded(source: str) -> RecordedEpisodes:
    """Of a file, or of a Minari data set.

    Raises:
      BadInput: in one line, where there is none, or it is damaged.
    """
    if minari_sets.is_named(source):
        recorded = minari_sets.read(source)
    else:
        try:
            recorded = from_bytes(Path(source).read_bytes(), RecordedEpisodes)
        except OSError as error:
            raise BadInput(f"{source}: {error.strerror or error}") from None
        except WireError as error:
            raise BadInput(f"{source}: no recorded set, or a damaged one: {error}") from None
    if fault := recorded.fault():
        raise BadInput(f"{source}: a damaged recorded set: {fault}")
    return recorded


def check_spaces_of(source: str, recorded: RecordedEpisodes, observation_space: Space, action_space: Space) -> None:
    """Raises BadInput: where the set is of another space than an env's, or its arrays are not of its own."""
    try:
        shown, taken = space_of(recorded.observation_space), space_of(recorded.action_space)
    except ValueError as error:
        raise BadInput(f"{source}: a damaged recorded set: {error}") from None
    if not alike(shown, observation_space):
        raise BadInput(
            f"{source}: recorded in {recorded.env}, which shows {shown}, and this env shows {observation_space}: "
            "give one of this env"
        )
    if not _takes(taken, action_space):
        raise BadInput(
            f"{source}: recorded in {recorded.env}, which takes {taken}, and this env takes {action_space}: give one "
            "of this env"
        )
    if recorded.actions.shape[1:] != (action_space.shape or ()):
        raise BadInput(f"{source}: a damaged recorded set: actions of shape {recorded.actions.shape[1:]} for {taken}")
    if recorded.actions.dtype.kind in "iu" and not (
        action_space.contains(recorded.actions.min(0).astype(action_space.dtype))
        and action_space.contains(recorded.actions.max(0).astype(action_space.dtype))
    ):
        raise BadInput(f"{source}: a damaged recorded set: it has actions that are none of {taken}")


def _takes(one: Space, other: Space) -> bool:
    """As `alike`; but numbers of actions may be wider or narrower, and bounds are those that were kept to."""
    shapes = one.shape == other.shape
    kinds = one.dtype is not None and other.dtype is not None and one.dtype.kind == other.dtype.kind == "f"
    return (shapes and kinds) or one == other
