"""Numbers of which one is drawn with a probability in proportion to it, at the cost of a few numpy calls for any number
of draws. Knows nothing of what the numbers stand for."""

from __future__ import annotations

import numpy as np

from rollcall.cluster.messages.arrays import Array

FAN_OUT = 32  # children of a node: four levels over a million leaves, each a numpy call or three


class SumTree:
    """Leaves >= 0, and above them the sums of FAN_OUT each. Every sum is added up anew from its children, in their
    order: the tree is a function of its leaves, whatever was written before."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._levels: list[Array] = []  # leaves first; each [nodes of the next level, FAN_OUT] float64
        nodes = size
        while not self._levels or nodes > 1:
            nodes = -(-nodes // FAN_OUT)
            self._levels.append(np.zeros((nodes, FAN_OUT)))

    @property
    def leaves(self) -> Array:
        """float64 [size], live: to be read."""
        return self._levels[0].reshape(-1)[: self._size]

    @property
    def total(self) -> float:
        return float(self._levels[-1].sum())

    @property
    def size_bytes(self) -> int:
        return sum(level.nbytes for level in self._levels)

    def set(self, index: Array, values: Array) -> None:
        """Leaves; of one that is named twice the last value counts."""
        self._levels[0].reshape(-1)[index] = values
        nodes = index
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            nodes = np.unique(nodes // FAN_OUT)
            above.reshape(-1)[nodes] = below[nodes].sum(1)

    def fill(self, leaves: Array) -> None:
        """All of them."""
        self._levels[0].reshape(-1)[: self._size] = leaves
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            above.reshape(-1)[: len(below)] = below.sum(1)

    def find(self, targets: Array) -> Array:
        """int64 [N]: for each target in [0, total) the leaf in whose share of the total it lies.

        Raises:
          ValueError: when no leaf has any.
        """
        if not self.total > 0:
            raise ValueError("find: all leaves are 0, so there is none to be found")
        nodes = np.zeros(len(targets), np.int64)
        rest = np.asarray(targets, np.float64)
        first = np.arange(len(targets)) * FAN_OUT
        for level in reversed(self._levels):
            children = level.take(nodes, axis=0)
            sums = children.cumsum(1)
            # Rounding may leave a target beyond the end: what is meant is the last child that has any share.
            rest = np.minimum(rest, np.nextafter(sums[:, -1], 0.0))
            chosen = (sums <= rest[:, None]).sum(1)
            place = first + chosen
            rest = np.maximum(rest - (sums.take(place) - children.take(place)), 0.0)
            nodes = nodes * FAN_OUT + chosen
        return nodes
