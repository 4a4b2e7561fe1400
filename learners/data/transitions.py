"""What replayed experience is made of: a record generic in the kind of array, numpy's as it lies in a buffer, torch's
in a batch. A field more here is a field more everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from rollcall.cluster.messages.arrays import map_arrays

A = TypeVar("A")  # the kind of array
B = TypeVar("B")


@dataclass(frozen=True)
class TransitionRows(Generic[A]):
    """B transitions of n steps each, from all over the buffer. Axis 0 of every array is the row's.

    With n = 1: in `observations` the actor took `actions`; `rewards` followed, and then the env showed
    `next_observations`. With n > 1 a row leads over the n steps after `observations`, or over fewer where an episode
    ended within them or nothing later has been seen yet. It never leads across an episode's end.

    The value of a row's action is `rewards + discounts * V(next_observations)`, whatever ended it.
    """

    observations: Mapping[str, A]  # [B, ...], raw and in the env's dtype, by name; a plain space: "observation"
    actions: A  # as the policy's distribution takes them: [B] int64, or [B, num] float32 / int64
    rewards: A  # float32: sum of discount^k r_k over the row's steps
    # float32: discount^(steps of the row); 0 where they end in a termination. A truncation bootstraps: its
    # next_observations are the true last ones, from before the reset.
    discounts: A
    next_observations: Mapping[str, A]  # [B, ...], as `observations`
    weights: A  # float32: importance, 1 where sampling is uniform
    action_mask: A | None = None  # bool [B, num_actions]: True where the env allowed the action
    next_action_mask: A | None = None  # of next_observations

    def __len__(self) -> int:
        return len(cast(Any, self.rewards))

    def rows(self, index: slice | A) -> TransitionRows[A]:
        """Those of a slice, or at the places of an integer array."""
        return map_arrays(self, lambda array: array[index])

    def map(self, function: Callable[[A], B]) -> TransitionRows[B]:
        """With `function` of each array in place of it."""
        return cast(TransitionRows[B], map_arrays(self, function))
