"""One unit of experience: a shard's envs stepped under one policy version, every step written into arrays that are made
for this unit alone. Knows neither tickets nor where weights come from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rollcall.actors.envs.vector import EnvGroup, Step
from rollcall.actors.policy import Rollout
from rollcall.cluster.messages.arrays import Array, named_arrays
from rollcall.cluster.messages.attempt import EpisodeStats, Unit
from rollcall.cluster.messages.steps import EnvSteps, Unroll


@dataclass(slots=True)
class Shard:
    """A group of envs whose state goes on from ticket to ticket, and all that goes on with it."""

    index: int
    incarnation: int
    group: EnvGroup
    observations: Mapping[str, Array]  # [B, ...]: what the envs show now
    action_mask: Array | None
    episode_starts: Array  # bool [B], of `observations`
    episode_returns: Array  # float64 [B]: of the episodes under way, so far
    episode_lengths: Array  # int64 [B]
    recurrent_state: Array | None = None  # before `observations`; the unit's policy makes the first one
    untouched: bool = True  # no step was taken yet


def begin_shard(index: int, incarnation: int, group: EnvGroup) -> Shard:
    shown = group.reset()
    num_envs = group.num_envs
    return Shard(
        index=index,
        incarnation=incarnation,
        group=group,
        observations=shown.observations,
        action_mask=shown.action_mask,
        episode_starts=np.ones(num_envs, bool),
        episode_returns=np.zeros(num_envs, np.float64),
        episode_lengths=np.zeros(num_envs, np.int64),
    )


@dataclass(frozen=True, slots=True)
class UnitOfExperience:
    """What stepping a shard gave. Rewards are not clipped."""

    unroll: Unroll[Array]
    episodes: tuple[EpisodeStats, ...]
    env_s: float
    inference_s: float

    @property
    def steps(self) -> EnvSteps[Array]:
        return self.unroll.steps


@dataclass
class _Recording:
    """A unit of at most T steps, written step by step, and what has ended in it, in order of time."""

    num_steps: int
    arrays: dict[str, Any] = field(default_factory=dict)  # of EnvSteps, by name: [T, B, ...], or such by name
    final_steps: list[int] = field(default_factory=list)
    final_envs: list[Array] = field(default_factory=list)
    final_observations: list[Mapping[str, Array]] = field(default_factory=list)
    ends: list[tuple[int, int, bool]] = field(default_factory=list)  # (t, b, whether an episode of the env's is over)

    def put(self, t: int, values: Mapping[str, Array | Mapping[str, Array] | None]) -> None:
        """What is known of step t, by the names of EnvSteps. Arrays are [B, ...], and are copied."""
        for name, value in values.items():
            if value is None:
                continue
            if name not in self.arrays:
                self.arrays[name] = self._empty(value)
            if isinstance(value, Mapping):
                for key, inner in value.items():
                    self.arrays[name][key][t] = inner
            else:
                self.arrays[name][t] = value

    def add_final(self, t: int, envs: Array, observations: Mapping[str, Array]) -> None:
        self.final_steps.append(t)
        self.final_envs.append(envs)
        self.final_observations.append(observations)

    def _empty(self, value: Array | Mapping[str, Array]) -> Array | dict[str, Array]:
        if isinstance(value, Mapping):
            return {key: np.empty((self.num_steps, *inner.shape), inner.dtype) for key, inner in value.items()}
        return np.ones((self.num_steps, *value.shape), value.dtype)  # a step without an action mask allows everything


def unroll(shard: Shard, rollout: Rollout, *, num_steps: int, unit: Unit) -> UnitOfExperience:
    """Steps the shard's envs: `num_steps` times ("fragment"), or until each has run one episode, which begins now and
    is truncated after `num_steps` ("episode": the shard must have just been reset).

    Raises:
      NonFinite, EnvFailure: from the envs. The shard is of no use after that.
    """
    group, clock = shard.group, time.perf_counter
    shard.untouched = False
    recording = _Recording(num_steps)
    active = np.ones(group.num_envs, bool) if unit == "episode" else None
    inference_s = env_s = 0.0
    t = 0
    for t in range(num_steps):
        recording.put(t, shown(shard))
        began = clock()
        stored, actions = rollout.act(
            shard.observations, episode_starts=shard.episode_starts, action_mask=shard.action_mask
        )
        acted = clock()
        recording.put(t, {"actions": stored})
        step = group.step(actions, active)
        env_s += clock() - acted
        inference_s += acted - began
        recording.put(t, outcome(step))
        if len(step.final_envs) or step.lost:
            _put_ends(recording, t, step)
            if active is not None:
                _retire(active, t, step)
        shard.observations, shard.action_mask = step.observations, step.action_mask
        shard.episode_starts = step.episode_starts
        if active is not None and not active.any():
            break
    if active is not None and active.any():
        _cut(recording, t, np.flatnonzero(active), shard.observations)
    found = _finish(shard, rollout, recording, t + 1)
    if unit == "episode":
        _blank_padding(found)
    episodes = _count_episodes(shard, found.steps, recording.ends)
    shard.recurrent_state = rollout.recurrent_state()
    return UnitOfExperience(found, episodes, env_s, inference_s)


def shown(shard: Shard) -> dict[str, Array | Mapping[str, Array] | None]:
    """What of EnvSteps is known before a step."""
    return {
        "observations": shard.observations,
        "episode_starts": shard.episode_starts,
        "action_mask": shard.action_mask,
    }


def outcome(step: Step) -> dict[str, Array | Mapping[str, Array] | None]:
    """What of EnvSteps is known after it."""
    return {
        "rewards": step.rewards,
        "terminated": step.terminated,
        "truncated": step.truncated,
        "mask": step.mask,
    }


def _put_ends(recording: _Recording, t: int, step: Step) -> None:
    """Books the episodes that ended at step t, and those that broke off before it because their env raised."""
    mask, terminated, truncated = (recording.arrays[name] for name in ("mask", "terminated", "truncated"))
    for b in step.lost:
        recording.ends.append((t, b, False))
        # The step before was the episode's last: it is truncated, and what the env showed after it is its true final
        # observation. Where it lies in an earlier unit, that one has bootstrapped from the same observation.
        if t > 0 and mask[t - 1, b] and not (terminated[t - 1, b] or truncated[t - 1, b]):
            truncated[t - 1, b] = True
            shown_then = {name: array[t, b][None] for name, array in recording.arrays["observations"].items()}
            recording.add_final(t - 1, np.array([b], np.int64), shown_then)
    if len(step.final_envs):
        recording.add_final(t, step.final_envs, step.final_observations)
        for b in step.final_envs.tolist():
            if step.life_lost is None or not step.life_lost[b]:  # else the game goes on, and its score with it
                recording.ends.append((t, b, True))


def _retire(active: Array, t: int, step: Step) -> None:
    """unit="episode": envs whose episode is over take no further part. One that raised at its first action begins
    again, since there is nothing of it yet."""
    active[step.final_envs] = False
    if t > 0 and step.lost:
        active[list(step.lost)] = False


def _cut(recording: _Recording, t: int, envs: Array, observations: Mapping[str, Array]) -> None:
    """unit="episode": the step limit truncates the episodes that still run."""
    envs = envs[recording.arrays["mask"][t, envs]]
    recording.arrays["truncated"][t, envs] = True
    recording.add_final(t, envs, {name: array[envs] for name, array in observations.items()})
    recording.ends.extend((t, int(b), True) for b in envs)


def _finish(shard: Shard, rollout: Rollout, recording: _Recording, num_steps: int) -> Unroll[Array]:
    """Cuts the arrays to the steps taken, and puts the finals in order."""
    recording.arrays["behaviour_logprobs"] = np.array(rollout.behaviour_logprobs(), np.float32)
    steps: EnvSteps[Array] = EnvSteps(**recording.arrays)
    if num_steps < recording.num_steps:
        steps = steps.map(lambda array: array[:num_steps].copy())
    index, finals = _finals(recording)
    return Unroll(
        steps=steps,
        last_observations={name: np.array(array) for name, array in shard.observations.items()},
        final_index=index,
        final_observations=finals,
        initial_recurrent_state=None if shard.recurrent_state is None else np.array(shard.recurrent_state),
    )


def _finals(recording: _Recording) -> tuple[Array, dict[str, Array]]:
    if not recording.final_steps:
        return np.zeros((0, 2), np.int64), {
            name: array[0][:0].copy() for name, array in recording.arrays["observations"].items()
        }
    envs = np.concatenate(recording.final_envs)
    steps = np.repeat(recording.final_steps, [len(item) for item in recording.final_envs])
    order = np.lexsort((envs, steps))
    return np.stack([steps, envs], axis=1)[order], {
        name: np.concatenate([item[name] for item in recording.final_observations])[order]
        for name in recording.arrays["observations"]
    }


def _blank_padding(found: Unroll[Array]) -> None:
    """What an env did after its episode is nobody's business, and differs between ways of stepping it."""
    padding = ~found.steps.mask
    for name, array in named_arrays(found.steps):
        if name not in ("rewards", "terminated", "truncated", "mask"):  # the group has seen to these
            array[padding] = name == "action_mask"
    for array in found.last_observations.values():
        array[:] = 0


def _count_episodes(
    shard: Shard, steps: EnvSteps[Array], ends: list[tuple[int, int, bool]]
) -> tuple[EpisodeStats, ...]:
    """The episodes that ended, in order of time; what goes on is added up in the shard."""
    returns = steps.rewards.cumsum(axis=0, dtype=np.float64)
    lengths = steps.mask.cumsum(axis=0, dtype=np.int64)
    episodes: list[EpisodeStats] = []
    for t, b, over in sorted(ends):
        if over:
            total = float(shard.episode_returns[b] + returns[t, b])
            episodes.append(EpisodeStats(total, int(shard.episode_lengths[b] + lengths[t, b])))
        shard.episode_returns[b] = -returns[t, b]
        shard.episode_lengths[b] = -lengths[t, b]
    shard.episode_returns += returns[-1]
    shard.episode_lengths += lengths[-1]
    return tuple(episodes)
