"""What a rater that is a program stands on: something that asks, and takes what is said. Beside the store it is the
store; `label_client.LabelClient` is the same over HTTP. Must never know how a rater judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rollcall.cluster.errors import LeaseLost
from rollcall.reward_service.labelling.store import PreferenceStore
from rollcall.reward_service.preferences.records import Candidate, Choice


@dataclass(frozen=True, slots=True)
class Shown:
    """A comparison as a rater sees it: candidates in the order of the screen."""

    token: str
    comparison_id: str
    candidates: tuple[Candidate, ...]


class LabelQueue(Protocol):
    def next(self, rater: str, session: str) -> Shown | None:
        """What the rater is asked next; None where nothing waits for it."""
        ...

    def label(
        self, *, token: str, rater: str, duration_s: float, choice: Choice | None, ranks: Sequence[int] | None
    ) -> bool:
        """Whether it was taken; False where the lease was lost."""
        ...


class StoreQueue:
    """The store itself as a LabelQueue."""

    def __init__(self, store: PreferenceStore) -> None:
        self._store = store

    def next(self, rater: str, session: str) -> Shown | None:
        lease = self._store.lease(rater, session=session)
        if lease is None:
            return None
        candidates = tuple(lease.comparison.candidates[index] for index in lease.order)
        return Shown(lease.token, lease.comparison.id, candidates)

    def label(
        self, *, token: str, rater: str, duration_s: float, choice: Choice | None, ranks: Sequence[int] | None
    ) -> bool:
        try:
            self._store.label(token=token, rater=rater, duration_s=duration_s, choice=choice, ranks=ranks)
        except LeaseLost:
            return False
        return True
