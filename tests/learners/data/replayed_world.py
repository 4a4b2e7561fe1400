"""Envs whose every observation is a number of its own, cut into fragments as actors make them; and beside them, what
happened, as a plain list: what a replay buffer's transitions are held against."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.steps import EnvSteps, Unroll


@dataclass
class Happened:
    """One env step that the learner has seen."""

    shown: list[int]  # its newest frame last
    action: int
    reward: float
    then: list[int]  # what the env showed after it
    terminated: bool
    goes_on: bool  # with the next of its list; False: an end, a gap, or the newest


@dataclass
class World:
    """`next_step`: after an end comes a step that is no experience, as with gymnasium's NEXT_STEP. `stack`: frames of
    an observation."""

    rng: np.random.Generator
    num_shards: int
    num_envs: int  # of a shard
    next_step: bool
    end_rate: float = 0.15
    stack: int = 1
    happened: list[list[Happened]] = field(default_factory=list)  # of each env of all shards, in order
    _shown: list[list[int]] = field(default_factory=list)
    _starts: list[bool] = field(default_factory=list)
    _resets: list[bool] = field(default_factory=list)  # the next step is the dead one
    _incarnations: list[int] = field(default_factory=list)
    _count: int = 0
    _tickets: int = 0

    def __post_init__(self) -> None:
        total = self.num_shards * self.num_envs
        self.happened = [[] for _ in range(total)]
        self._shown = [self._new() for _ in range(total)]
        self._starts, self._resets = [True] * total, [False] * total
        self._incarnations = [0] * self.num_shards

    def _new(self) -> list[int]:
        """What a new episode shows: its first frame, as often as it takes."""
        self._count += 1
        return [self._count] * self.stack

    def _after(self, shown: list[int]) -> list[int]:
        self._count += 1
        return [*shown[1:], self._count]

    def begin_anew(self, shard: int) -> None:
        """As after an actor's death."""
        self._incarnations[shard] += 1
        for env in self._envs(shard):
            self._shown[env], self._starts[env], self._resets[env] = self._new(), True, False
            self._cut(env)

    def fragment(self, shard: int, num_steps: int, *, dropped: bool = False) -> GymTrajectory:
        """The shard's next; one that is dropped the learner will not see."""
        shape, envs = (num_steps, self.num_envs), self._envs(shard)
        shown, actions, rewards = np.zeros((*shape, self.stack)), np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        terminated, truncated, starts = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
        mask, finals = np.ones(shape, bool), []
        for t in range(num_steps):
            for b, env in enumerate(envs):
                shown[t, b], starts[t, b] = self._shown[env], self._starts[env]
                if self._resets[env]:
                    mask[t, b], self._resets[env] = False, False
                    self._shown[env], self._starts[env] = self._new(), True
                    continue
                actions[t, b], rewards[t, b] = self.rng.integers(5), self.rng.normal()
                ends = self.rng.random() < self.end_rate
                terminated[t, b] = ends and self.rng.random() < 0.5
                truncated[t, b] = ends and not terminated[t, b]
                then = self._after(self._shown[env])
                if not dropped:
                    step = Happened(
                        self._shown[env],
                        int(actions[t, b]),
                        float(rewards[t, b]),
                        then,
                        bool(terminated[t, b]),
                        goes_on=not ends,
                    )
                    self.happened[env].append(step)
                self._starts[env], self._shown[env] = False, then
                if ends:
                    finals.append((t, b, then))
                    if self.next_step:
                        self._resets[env] = True
                    else:
                        self._shown[env], self._starts[env] = self._new(), True
        if dropped:
            for env in envs:
                self._cut(env)
        index = np.array([final[:2] for final in finals], np.int64).reshape(-1, 2)
        unroll: Unroll[Array] = Unroll(
            steps=EnvSteps(
                {"observation": shown},
                actions,
                np.zeros(shape, np.float32),
                rewards,
                terminated,
                truncated,
                mask,
                starts,
            ),
            last_observations={"observation": np.array([self._shown[env] for env in envs], np.float64)},
            final_index=index,
            final_observations={
                "observation": np.array([final[2] for final in finals], np.float64).reshape(-1, self.stack)
            },
        )
        self._tickets += 1
        return GymTrajectory(Header(self._tickets, 1, 1), shard, self._incarnations[shard], self._tickets, unroll)

    def n_steps_from(self, env: int, place: int, *, n_step: int, discount: float) -> tuple[float, float, list[int]]:
        """(sum of rewards, discount of what follows, what follows), step by step."""
        total, steps = 0.0, self.happened[env]
        for k in range(n_step):
            step = steps[place + k]
            total += discount**k * step.reward
            if step.terminated:
                return total, 0.0, step.then
            if not step.goes_on or place + k + 1 == len(steps):
                return total, discount ** (k + 1), step.then
        return total, discount**n_step, steps[place + n_step - 1].then

    def _cut(self, env: int) -> None:
        if self.happened[env]:
            self.happened[env][-1].goes_on = False

    def _envs(self, shard: int) -> range:
        return range(shard * self.num_envs, (shard + 1) * self.num_envs)
