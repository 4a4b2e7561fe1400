"""A recorded set as a learner takes it: any rows of it as transitions, each array held once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.recorded import RecordedEpisodes
from rollcall.learners.data.transitions import TransitionRows


@dataclass(frozen=True)
class RecordedSteps:
    """N steps of some of a set's episodes."""

    shown: Mapping[str, Array]  # [N + E, ...]: the observations of all steps, then the last ones of the episodes
    next_index: Array  # int64 [N]: where in `shown` the observation after each step is
    actions: Array  # [N, ...]: as the policy's distribution takes them
    rewards: Array  # float32 [N]
    terminated: Array  # bool [N]
    action_mask: Array | None  # bool [N, num_actions]

    @classmethod
    def of(cls, recorded: RecordedEpisodes, episodes: Sequence[int], stored: Callable[[Array], Array]) -> RecordedSteps:
        """Of these episodes, in the order given. `stored`: actions of the env in the form that is learnt from."""
        begins, ends = recorded.episode_starts, recorded.episode_ends
        own = np.concatenate([np.arange(begins[e], ends[e]) for e in episodes])
        lengths = np.array([ends[e] - begins[e] for e in episodes])
        following = np.arange(1, len(own) + 1)
        following[np.cumsum(lengths) - 1] = len(own) + np.arange(len(lengths))
        return cls(
            shown={
                name: np.concatenate([array[own], recorded.last_observations[name][list(episodes)]])
                for name, array in recorded.observations.items()
            },
            next_index=following,
            actions=stored(recorded.actions[own]),
            rewards=recorded.rewards[own].astype(np.float32),
            terminated=recorded.terminated[own],
            action_mask=None if recorded.action_mask is None else recorded.action_mask[own],
        )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def observations(self) -> dict[str, Array]:
        """[N, ...]"""
        return {name: array[: len(self)] for name, array in self.shown.items()}

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self.shown.values()) + self.actions.nbytes + 13 * len(self)

    def rows(self, index: Array, *, discount: float) -> TransitionRows[Array]:
        """Steps as transitions of one step each."""
        following = self.next_index[index]
        masks = next_masks = None
        if self.action_mask is not None:
            masks = self.action_mask[index]
            # What the env allows after an episode's last step is nobody's business: nothing is done there.
            next_masks = self.action_mask[np.minimum(following, len(self) - 1)] | (following >= len(self))[:, None]
        return TransitionRows(
            observations={name: array[index] for name, array in self.shown.items()},
            actions=self.actions[index],
            rewards=self.rewards[index],
            discounts=np.where(self.terminated[index], 0.0, discount).astype(np.float32),
            next_observations={name: array[following] for name, array in self.shown.items()},
            weights=np.ones(len(index), np.float32),
            action_mask=masks,
            next_action_mask=next_masks,
        )
