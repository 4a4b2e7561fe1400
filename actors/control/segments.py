"""What env and policy did as segments, for whoever judges it: one episode each, and every action as the env took it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rollcall.actors.envs.observations import PLAIN_NAME
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.reward_service.protocol import ArrayField, Segment

ToEnv = Callable[[Array], Array]  # actions as a policy samples and stores them -> as its env takes them


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps [begin, end) of one env of a unit, all of them experience of one episode."""

    env: int
    begin: int
    end: int

    @property
    def steps(self) -> slice:
        return slice(self.begin, self.end)


def episode_stretches(trajectory: GymTrajectory) -> Iterator[Stretch]:
    """Every step of a unit that is experience, once, in as few stretches as episodes allow: env by env, in order of
    time. An episode's last step ends a stretch, and so does a step that is no experience (a reset, an env that was
    started anew): between the steps on its two sides nothing was done."""
    steps, mask = trajectory.steps, trajectory.steps.mask
    ends = steps.terminated | steps.truncated
    firsts, lasts = mask.copy(), mask.copy()
    firsts[1:] &= ~mask[:-1] | ends[:-1] | steps.episode_starts[1:]
    lasts[:-1] &= ~mask[1:] | firsts[1:]
    for env in range(mask.shape[1]):
        for first, last in zip(np.flatnonzero(firsts[:, env]), np.flatnonzero(lasts[:, env]), strict=True):
            yield Stretch(env, int(first), int(last) + 1)


class SegmentsOf:
    """The segments of one unit. What stands in a trajectory is what the policy sampled (its log-probabilities belong to
    that); what was done is what the env got: clipped, squashed, counted from the space's `start`."""

    def __init__(self, trajectory: GymTrajectory, to_env: ToEnv) -> None:
        self._unroll = trajectory.unroll
        self._observations = trajectory.steps.observations[PLAIN_NAME]
        self._actions = to_env(trajectory.steps.actions)
        self._finals = {(int(t), int(b)): row for row, (t, b) in enumerate(trajectory.unroll.final_index)}

    def __call__(self, stretch: Stretch) -> Segment:
        return Segment(
            observations=ArrayField.of(self._observations[stretch.steps, stretch.env]),
            actions=ArrayField.of(self._actions[stretch.steps, stretch.env]),
        )

    def with_end(self, stretch: Stretch) -> Segment:
        """Also what the last action led to: for who judges a step by both its ends."""
        terminated = bool(self._unroll.steps.terminated[stretch.end - 1, stretch.env])
        last = ArrayField.of(self._last(stretch)[None])
        return self(stretch).model_copy(update={"last_observation": last, "terminated": terminated})

    def _last(self, stretch: Stretch) -> Array:
        """The observation after the stretch: of an episode that is over, its true last one; else what came next."""
        row = self._finals.get((stretch.end - 1, stretch.env))
        last: Array = self._unroll.last_observations[PLAIN_NAME][stretch.env]
        if row is not None:
            last = self._unroll.final_observations[PLAIN_NAME][row]
        elif stretch.end < len(self._observations):
            last = self._observations[stretch.end, stretch.env]
        return last
