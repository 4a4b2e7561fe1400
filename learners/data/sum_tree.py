"""Numbers of which one is drawn with a probability in proportion to it, at the cost of a few numpy calls for any number
of draws. Knows nothing of what the numbers stand for."""

from __future__ import annotations

import numpy as np

from rollcall.cluster.messages.arrays import Array

FAN_OUT = 32  # children of a node: four levels over a million leaves, each a numpy call or three


class SumTree:
    """Leaves >= 0, and above them nodes of FAN_OUT children each, which keep the running sums of these. A node is
    added up anew from its children, in their order: the tree is a function of its leaves, whatever was written before.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        nodes = -(-size // FAN_OUT)
        padded = _padded(nodes)
        self._leaves = np.zeros((padded, FAN_OUT))
        self._levels = [np.zeros((padded, FAN_OUT))]  # lowest first; each float64 [nodes, FAN_OUT], ascending in a row
        while nodes > 1:
            nodes = -(-nodes // FAN_OUT)
            self._levels.append(np.zeros((_padded(nodes), FAN_OUT)))

    @property
    def leaves(self) -> Array:
        """float64 [size], live: to be read."""
        return self._leaves.reshape(-1)[: self._size]

    @property
    def total(self) -> float:
        return float(self._levels[-1][0, -1])

    @property
    def size_bytes(self) -> int:
        return sum(level.nbytes for level in (self._leaves, *self._levels))

    def set(self, index: Array, values: Array) -> None:
        """Leaves; of one that is named twice the last value counts."""
        self._leaves.reshape(-1)[index] = values
        nodes, children = index, self._leaves
        for level in self._levels:
            nodes = np.unique(nodes // FAN_OUT)
            level[nodes] = children[nodes].cumsum(1)
            children = _sums(level)

    def fill(self, leaves: Array) -> None:
        """All of them."""
        self._leaves.reshape(-1)[: self._size] = leaves
        children = self._leaves
        for level in self._levels:
            level[: len(children)] = children.cumsum(1)
            children = _sums(level)

    def find(self, targets: Array) -> Array:
        """int64 [N]: for each target in [0, total) the leaf in whose share of the total it lies.

        Raises:
          ValueError: when no leaf has any.
        """
        if not self.total > 0:
            raise ValueError("find: all leaves are 0, so there is none to be found")
        nodes = np.zeros(len(targets), np.int64)
        rest = np.asarray(targets, np.float64)
        for level in reversed(self._levels):
            sums = level.take(nodes, axis=0)
            # Rounding may leave a target beyond the end: what is meant is the last child that has any share.
            rest = np.minimum(rest, np.nextafter(sums[:, -1], 0.0))
            chosen = (sums <= rest[:, None]).view(np.int8).sum(1, dtype=np.int8)  # as bytes: a third of the time
            nodes = nodes * FAN_OUT + chosen
            rest = rest - np.where(chosen > 0, level.reshape(-1).take(nodes - 1), 0.0)
        return nodes


def _padded(nodes: int) -> int:
    """Whole rows of the level above; the top is a row of its own."""
    return nodes if nodes == 1 else -(-nodes // FAN_OUT) * FAN_OUT


def _sums(level: Array) -> Array:
    """[nodes, FAN_OUT] -> [nodes / FAN_OUT, FAN_OUT], a view: of each node the sum, as children of the level above."""
    return level[:, -1].reshape(-1, FAN_OUT) if len(level) > 1 else level[:, -1:]
