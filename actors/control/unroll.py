"""One unit of experience: a shard's envs stepped under one policy version, every step written into arrays that are made
for this unit alone. Knows neither tickets nor where weights come from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rollcall.actors.envs.vector import EnvGroup, Step
from rollcall.actors.policy import Rollout
from rollcall.cluster.messages.records import Array, EpisodeStats, Unit


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


@dataclass
class Unroll:
    """What a unit gave. Arrays as in GymTrajectory, except that rewards are not clipped."""

    observations: dict[str, Array]
    last_observations: dict[str, Array]
    final_index: Array
    final_observations: dict[str, Array]
    actions: Array
    behaviour_logprobs: Array
    rewards: Array
    terminated: Array
    truncated: Array
    mask: Array
    episode_starts: Array
    action_mask: Array | None
    initial_recurrent_state: Array | None
    episodes: tuple[EpisodeStats, ...]
    env_s: float
    inference_s: float


@dataclass
class _Buffers:
    """Arrays of a unit of at most T steps, and what has ended in it, in order of time."""

    observations: dict[str, Array]
    rewards: Array
    terminated: Array
    truncated: Array
    mask: Array
    episode_starts: Array
    actions: Array | None = None
    action_mask: Array | None = None
    final_steps: list[int] = field(default_factory=list)
    final_envs: list[Array] = field(default_factory=list)
    final_observations: list[Mapping[str, Array]] = field(default_factory=list)
    ends: list[tuple[int, int, bool]] = field(default_factory=list)  # (t, b, whether an episode of the env's is over)

    def add_final(self, t: int, envs: Array, observations: Mapping[str, Array]) -> None:
        self.final_steps.append(t)
        self.final_envs.append(envs)
        self.final_observations.append(observations)


def unroll(shard: Shard, rollout: Rollout, *, num_steps: int, unit: Unit) -> Unroll:
    """Steps the shard's envs: `num_steps` times ("fragment"), or until each has run one episode, which begins now and
    is truncated after `num_steps` ("episode": the shard must have just been reset).

    Raises:
      NonFinite, EnvFailure: from the envs. The shard is of no use after that.
    """
    group, clock = shard.group, time.perf_counter
    shard.untouched = False
    buffers = _allocate(shard.observations, num_steps, group.num_envs)
    active = np.ones(group.num_envs, bool) if unit == "episode" else None
    observed = list(buffers.observations.items())
    inference_s = env_s = 0.0
    t = 0
    for t in range(num_steps):
        for name, array in observed:
            array[t] = shard.observations[name]
        buffers.episode_starts[t] = shard.episode_starts
        _put_mask(buffers, t, shard.action_mask, num_steps)
        began = clock()
        stored, actions = rollout.act(
            shard.observations, episode_starts=shard.episode_starts, action_mask=shard.action_mask
        )
        acted = clock()
        if buffers.actions is None:
            buffers.actions = np.empty((num_steps, *stored.shape), stored.dtype)
        buffers.actions[t] = stored
        step = group.step(actions, active)
        env_s += clock() - acted
        inference_s += acted - began
        buffers.rewards[t] = step.rewards
        buffers.terminated[t] = step.terminated
        buffers.truncated[t] = step.truncated
        buffers.mask[t] = step.mask
        if len(step.final_envs) or step.lost:
            _put_ends(buffers, t, step)
            if active is not None:
                _retire(active, t, step)
        shard.observations, shard.action_mask = step.observations, step.action_mask
        shard.episode_starts = step.episode_starts
        if active is not None and not active.any():
            break
    if active is not None and active.any():
        _cut(buffers, t, np.flatnonzero(active), shard.observations)
    return _finish(shard, rollout, buffers, t + 1, whole_episodes=unit == "episode", times=(env_s, inference_s))


def _allocate(observations: Mapping[str, Array], num_steps: int, num_envs: int) -> _Buffers:
    shape = (num_steps, num_envs)
    return _Buffers(
        observations={name: np.empty((num_steps, *item.shape), item.dtype) for name, item in observations.items()},
        rewards=np.empty(shape, np.float32),
        terminated=np.empty(shape, bool),
        truncated=np.empty(shape, bool),
        mask=np.empty(shape, bool),
        episode_starts=np.empty(shape, bool),
    )


def _put_mask(buffers: _Buffers, t: int, mask: Array | None, num_steps: int) -> None:
    if mask is None:
        return
    if buffers.action_mask is None:
        buffers.action_mask = np.ones((num_steps, *mask.shape), bool)
    buffers.action_mask[t] = mask


def _put_ends(buffers: _Buffers, t: int, step: Step) -> None:
    """Books the episodes that ended at step t, and those that broke off before it because their env raised."""
    for b in step.lost:
        buffers.ends.append((t, b, False))
        # The step before was the episode's last: it is truncated, and what the env showed after it is its true final
        # observation. Where it lies in an earlier unit, that one has bootstrapped from the same observation.
        if t > 0 and buffers.mask[t - 1, b] and not (buffers.terminated[t - 1, b] or buffers.truncated[t - 1, b]):
            buffers.truncated[t - 1, b] = True
            envs = np.array([b], np.int64)
            buffers.add_final(t - 1, envs, {name: array[t, b][None] for name, array in buffers.observations.items()})
    if len(step.final_envs):
        buffers.add_final(t, step.final_envs, step.final_observations)
        for b in step.final_envs.tolist():
            if step.life_lost is None or not step.life_lost[b]:  # else the game goes on, and its score with it
                buffers.ends.append((t, b, True))


def _retire(active: Array, t: int, step: Step) -> None:
    """unit="episode": envs whose episode is over take no further part. One that raised at its first action begins
    again, since there is nothing of it yet."""
    active[step.final_envs] = False
    if t > 0 and step.lost:
        active[list(step.lost)] = False


def _cut(buffers: _Buffers, t: int, envs: Array, observations: Mapping[str, Array]) -> None:
    """unit="episode": the step limit truncates the episodes that still run."""
    envs = envs[buffers.mask[t, envs]]
    buffers.truncated[t, envs] = True
    buffers.add_final(t, envs, {name: array[envs] for name, array in observations.items()})
    buffers.ends.extend((t, int(b), True) for b in envs)


def _finish(
    shard: Shard,
    rollout: Rollout,
    buffers: _Buffers,
    num_steps: int,
    *,
    whole_episodes: bool,
    times: tuple[float, float],
) -> Unroll:
    """Cuts the arrays to the steps taken, puts the finals in order, and counts episodes."""

    def taken(array: Array) -> Array:
        return array if len(array) == num_steps else array[:num_steps].copy()

    assert buffers.actions is not None
    result = Unroll(
        observations={name: taken(array) for name, array in buffers.observations.items()},
        last_observations={name: np.array(array) for name, array in shard.observations.items()},
        final_index=np.zeros((0, 2), np.int64),
        final_observations={name: array[0][:0].copy() for name, array in buffers.observations.items()},
        actions=taken(buffers.actions),
        behaviour_logprobs=np.array(rollout.behaviour_logprobs(), np.float32),
        rewards=taken(buffers.rewards),
        terminated=taken(buffers.terminated),
        truncated=taken(buffers.truncated),
        mask=taken(buffers.mask),
        episode_starts=taken(buffers.episode_starts),
        action_mask=None if buffers.action_mask is None else taken(buffers.action_mask),
        initial_recurrent_state=None if shard.recurrent_state is None else np.array(shard.recurrent_state),
        episodes=_count_episodes(shard, buffers, num_steps),
        env_s=times[0],
        inference_s=times[1],
    )
    shard.recurrent_state = rollout.recurrent_state()
    if buffers.final_steps:
        _sort_finals(result, buffers)
    if whole_episodes:
        _blank_padding(result)
    return result


def _sort_finals(result: Unroll, buffers: _Buffers) -> None:
    envs = np.concatenate(buffers.final_envs)
    steps = np.repeat(buffers.final_steps, [len(item) for item in buffers.final_envs])
    order = np.lexsort((envs, steps))
    result.final_index = np.stack([steps, envs], axis=1)[order]
    result.final_observations = {
        name: np.concatenate([item[name] for item in buffers.final_observations])[order]
        for name in result.final_observations
    }


def _blank_padding(result: Unroll) -> None:
    """What an env did after its episode is nobody's business, and differs between ways of stepping it."""
    padding = ~result.mask
    arrays = [result.actions, result.behaviour_logprobs, result.episode_starts, *result.observations.values()]
    for array in arrays:
        array[padding] = 0
    for array in result.last_observations.values():
        array[:] = 0
    if result.action_mask is not None:
        result.action_mask[padding] = True


def _count_episodes(shard: Shard, buffers: _Buffers, num_steps: int) -> tuple[EpisodeStats, ...]:
    """The episodes that ended, in order of time; what goes on is added up in the shard."""
    returns = buffers.rewards[:num_steps].cumsum(axis=0, dtype=np.float64)
    lengths = buffers.mask[:num_steps].cumsum(axis=0, dtype=np.int64)
    episodes: list[EpisodeStats] = []
    for t, b, over in sorted(buffers.ends):
        if over:
            total = float(shard.episode_returns[b] + returns[t, b])
            episodes.append(EpisodeStats(total, int(shard.episode_lengths[b] + lengths[t, b])))
        shard.episode_returns[b] = -returns[t, b]
        shard.episode_lengths[b] = -lengths[t, b]
    shard.episode_returns += returns[-1]
    shard.episode_lengths += lengths[-1]
    return tuple(episodes)
