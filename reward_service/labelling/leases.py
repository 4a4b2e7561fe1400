"""A lease: permission to label one comparison once, shown in an order drawn for it. Turns what was said of the screen
into what was said of the candidates. Must never know where either is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rollcall.reward_service.preferences.records import Choice, Comparison, Label, check_answer


@dataclass(frozen=True, slots=True)
class Lease:
    """order[i] is the candidate in the i-th place of the screen."""

    token: str
    comparison: Comparison
    order: tuple[int, ...]
    ttl_s: float

    def label(
        self, *, rater: str, duration_s: float, choice: Choice | None = None, ranks: Sequence[int] | None = None
    ) -> Label:
        """The label that is said in the order of the screen.

        Raises:
          ValueError: where this cannot be said of so many candidates.
        """
        check_answer(num_candidates=len(self.order), choice=choice, ranks=ranks)
        choice, placed = on_candidates(self.order, choice, ranks)
        return Label(
            comparison_id=self.comparison.id,
            rater=rater,
            choice=choice,
            ranks=placed,
            shown=self.order,
            created_at=datetime.now(UTC),
            duration_s=duration_s,
            token=self.token,
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """`waiting` is what this rater may still be asked; `today` is what he has decided since a given time."""

    comparisons: int
    labels: int
    waiting: int
    today: int


def on_candidates(
    order: Sequence[int], choice: Choice | None, ranks: Sequence[int] | None
) -> tuple[Choice | None, tuple[int, ...] | None]:
    """From places on the screen to candidates."""
    if ranks is not None:
        placed = dict(zip(order, ranks, strict=True))
        return choice, tuple(placed[index] for index in range(len(order)))
    if choice in ("left", "right") and order[0] == 1:
        choice = "right" if choice == "left" else "left"
    return choice, None
