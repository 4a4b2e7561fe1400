"""Which kept transitions are drawn how often: in proportion to their priorities, and what their importance weights are
(Schaul et al., 2016, arXiv:1511.05952). Knows the slots of a buffer, not what is in them."""

from __future__ import annotations

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.data.replay_config import PriorityConfig
from rollcall.learners.data.sum_tree import SumTree

LEAVES = "priorities"  # the name of their array in a checkpoint


class Priorities:
    """Of every slot p = (|TD error| + least)^exponent; 0 where no transition begins."""

    def __init__(self, config: PriorityConfig, num_slots: int) -> None:
        self._config = config
        self._tree = SumTree(num_slots)
        self._before: list[tuple[Array, Array]] = []
        self.largest = 1.0  # so far: what a new transition has of which no TD error is known, so that it is soon drawn

    def add(self, slots: Array, begins: Array, errors: Array | None = None) -> None:
        """Slots that were written, and whether a transition begins there. `errors`: |TD error| as actors found it."""
        self._before.append((slots, self._tree.leaves[slots]))
        values = self.largest if errors is None else self._priority(errors)
        self._tree.set(slots, np.where(begins, values, 0.0))

    def set(self, slots: Array, errors: Array) -> None:
        """|TD error| as a gradient step found them; of a slot drawn twice, the last one's."""
        priorities = self._priority(errors)
        self._tree.set(slots, priorities)
        self.largest = max(self.largest, float(priorities.max(initial=0.0)))

    def draw(self, number: int, generator: np.random.Generator) -> Array:
        """int64 [number]: one slot out of each `number`-th of the sum of priorities."""
        strata = (np.arange(number) + generator.random(number)) / number
        return self._tree.find(strata * self._tree.total)

    def weights(self, slots: Array, *, num_transitions: int, done: float) -> Array:
        """float32 [N]: (num_transitions * probability)^-beta over the largest of them. `done`: of the run, 0 to 1."""
        beta = self._config.importance + (1.0 - self._config.importance) * min(1.0, done)
        probability = self._tree.leaves[slots] / self._tree.total
        weights = (num_transitions * probability) ** -beta
        found: Array = (weights / weights.max()).astype(np.float32)
        return found

    @property
    def evenness(self) -> float:
        """(sum p)^2 / (N sum p^2) of N transitions: 1 where all are drawn alike often, 1 / N where one alone is."""
        leaves = self._tree.leaves
        squares = float(leaves @ leaves)
        return self._tree.total**2 / (int(np.count_nonzero(leaves)) * squares) if squares else 1.0

    def take_back(self) -> None:
        """What was added since `keep`."""
        for slots, leaves in reversed(self._before):
            self._tree.set(slots, leaves)
        self._before.clear()

    def keep(self) -> None:
        self._before.clear()

    @property
    def leaves(self) -> Array:
        return self._tree.leaves

    def load(self, leaves: Array) -> None:
        self._before.clear()
        self._tree.fill(leaves)

    @property
    def size_bytes(self) -> int:
        return self._tree.size_bytes

    def _priority(self, errors: Array) -> Array:
        found: Array = (np.abs(errors).astype(np.float64) + self._config.least) ** self._config.exponent
        return found
