"""Data sets as sources of batches, in a seeded order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from rollcall.cluster.loop.task_source import ShuffledRows
from rollcall.cluster.seeds import derive_seed

Item = TypeVar("Item")
ItemOut = TypeVar("ItemOut", covariant=True)


class BatchSource(Protocol[ItemOut]):
    """Where the batches of an offline run come from: a data set. (A run with actors has its coordinator cut them from
    the ticket queue.) What it gives is what the run's Collator collates."""

    def take(self, step: int) -> Sequence[ItemOut] | None:
        """The batch of learner step `step`, the same however often it is asked for; None when there is no more,
        or the run is to stop before it is made."""


class ShuffledSource(Generic[Item]):
    """A BatchSource: every item once per pass, every pass in an order of its own."""

    def __init__(
        self, items: Sequence[Item], *, batch_size: int, steps: int, seed: int, groups: Sequence[int] | None = None
    ) -> None:
        """`groups`: of each item, to take one item of each group after the other, so that those of a small group come
        again sooner.

        Raises:
          ValueError: when there are no items.
        """
        self._items = items
        self._orders = [ShuffledRows(range(len(items)), seed=seed)]
        if groups is not None:
            rows = {group: [i for i, own in enumerate(groups) if own == group] for group in sorted(set(groups))}
            self._orders = [ShuffledRows(own, seed=derive_seed(seed, "group", group)) for group, own in rows.items()]
        self._batch_size = batch_size
        self._steps = steps

    def take(self, step: int) -> list[Item] | None:
        if step >= self._steps:
            return None
        positions = range(step * self._batch_size, (step + 1) * self._batch_size)
        return [self._items[self._row(position)] for position in positions]

    def _row(self, position: int) -> int:
        place, turn = divmod(position, len(self._orders))
        return self._orders[turn].row(place)[0]
