"""Whole episodes of an expert, or of anybody, as they are kept in a file: what was seen, done and earned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rollcall.cluster.messages.arrays import Array

ActedBy = Literal["greedy", "sampled", "unknown"]  # the likeliest action of a policy, or one drawn from it


@dataclass(frozen=True)
class RecordedEpisodes:
    """E episodes of N steps together, one after the other: the arrays of steps are [N, ...].

    Time alignment as in EnvSteps: observations[i] is shown, actions[i] taken, and rewards[i], terminated[i] and
    truncated[i] follow. Each episode's last step is terminated or truncated: one that was left before its end is
    truncated there.
    """

    env: str  # as its recipe called it
    observation_space: str  # JSON (actors/envs/plain_spaces.py), as a policy is shown it: without an action mask
    action_space: str
    acted_by: ActedBy
    observations: Mapping[str, Array]  # raw, by name; a plain space has the one name "observation"
    actions: Array  # as the env took them
    rewards: Array  # float32
    terminated: Array  # bool
    truncated: Array  # bool
    episode_ends: Array  # int64 [E]: the step after each episode's last one
    last_observations: Mapping[str, Array]  # [E, ...]: what was shown after each episode's last step
    action_mask: Array | None = None  # bool [N, num_actions]: True where the env allows the action

    @property
    def num_steps(self) -> int:
        return len(self.actions)

    @property
    def num_episodes(self) -> int:
        return len(self.episode_ends)

    @property
    def episode_starts(self) -> Array:
        """int64 [E]: the first step of each episode."""
        return np.concatenate([np.zeros(min(1, self.num_episodes), np.int64), self.episode_ends[:-1]])

    @property
    def returns(self) -> Array:
        """float64 [E]: undiscounted."""
        totals = np.concatenate([[0.0], self.rewards.cumsum(dtype=np.float64)])
        whole: Array = totals[self.episode_ends] - totals[self.episode_starts]
        return whole

    def fault(self) -> str:
        """What in it contradicts itself; empty when it is whole."""
        steps, episodes = self.num_steps, self.num_episodes
        if steps == 0 or episodes == 0:
            return "it holds no steps"
        of_steps = {"rewards": self.rewards, "terminated": self.terminated, "truncated": self.truncated}
        of_steps |= {f"observations.{name}": array for name, array in self.observations.items()}
        of_steps |= {} if self.action_mask is None else {"action_mask": self.action_mask}
        of_episodes = {f"last_observations.{name}": array for name, array in self.last_observations.items()}
        for wanted, arrays in ((steps, of_steps), (episodes, of_episodes)):
            for name, array in arrays.items():
                if array.ndim == 0 or len(array) != wanted:
                    return f"its {name} has shape {array.shape}, where there are {wanted}"
        for name, array in self.observations.items():
            last = self.last_observations.get(name)
            if last is None or last.shape[1:] != array.shape[1:]:
                return f"its last_observations.{name} is not as its observations are"
        ends, over = self.episode_ends, self.terminated | self.truncated
        if ends[0] < 1 or (np.diff(ends) < 1).any() or ends[-1] != steps:
            return f"its episodes do not add up to its {steps} steps"
        if not np.array_equal(np.flatnonzero(over) + 1, ends):
            return "its episodes do not end where its steps say so"
        for name, array in (("actions", self.actions), ("rewards", self.rewards), *self.observations.items()):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                return f"its {name} has numbers that are not finite"
        return ""
