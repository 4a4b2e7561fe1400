"""A lease: permission to label one comparison once, shown in an order drawn for it. Turns what was said of the screen
into what was said of the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from rollcall.reward_service.preferences.records import Answer, Candidate, Choice, Comparison, Label


@dataclass(frozen=True, slots=True)
class Lease:
    """order[i] is the candidate in the i-th place of the screen."""

    token: str
    comparison: Comparison
    order: tuple[int, ...]
    ttl_s: float

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """In the order of the screen."""
        return tuple(self.comparison.candidates[index] for index in self.order)

    def label(self, answer: Answer, *, rater: str, duration_s: float) -> Label:
        """The label that is said in the order of the screen.

        Raises:
          ValueError: where this cannot be said of so many candidates.
        """
        answer.check(num_candidates=len(self.order))
        said = answer.reordered(self.order)
        return Label(
            comparison_id=self.comparison.id,
            rater=rater,
            choice=said.choice,
            ranks=said.ranks,
            probability=said.probability,
            shown=self.order,
            created_at=datetime.now(UTC),
            duration_s=duration_s,
            token=self.token,
        )


@dataclass(frozen=True, slots=True)
class LeasedComparison:
    """What a rater elsewhere sees of a lease."""

    token: str
    candidates: tuple[Candidate, ...]  # in the order of the screen


class LabelQueue(Protocol):
    """What raters that are programs stand on: the PreferenceStore itself, or over HTTP a LabelClient."""

    def lease(self, rater: str, *, session: str = "") -> Lease | LeasedComparison | None:
        """What the rater is asked next; None where nothing waits for it."""
        ...

    def label(
        self,
        *,
        token: str,
        rater: str,
        duration_s: float,
        choice: Choice | None,
        ranks: Sequence[int] | None,
        probability: float | None = None,
    ) -> object:
        """Raises LeaseLost."""
        ...
