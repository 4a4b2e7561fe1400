"""What every scorer is: something that gives batches of items scores. The batcher and the registry know scorers through
this file alone; it must never know HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rollcall.reward_service.protocol import ItemErrorKind, ScoreItem

Taken = Literal["text", "segment"]


@dataclass(frozen=True, slots=True)
class Score:
    """One item's."""

    value: float
    components: Mapping[str, float] = field(default_factory=dict)
    step_values: tuple[float, ...] | None = None  # [T], of a segment; they sum to the value


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has no score."""

    kind: ItemErrorKind
    message: str


Outcome = Score | Failure


class Scorer(Protocol):
    """Built from its config by `config.build_scorer`. Called from one thread at a time, never the event loop's."""

    takes: frozenset[Taken]

    @property
    def version(self) -> str:
        """Another one whenever another score is possible: part of the cache's keys and of every trajectory."""
        ...

    @property
    def cacheable(self) -> bool:
        """Whether an item has the same score tomorrow (a sampled judge's has not)."""
        ...

    def cost(self, item: ScoreItem) -> int:
        """Tokens (or steps) that the item takes of a batch's budget. Cheap: called on arrival, on the event loop."""
        ...

    def score(self, items: Sequence[ScoreItem]) -> Sequence[Outcome]:
        """One outcome per item, in their order. What is wrong with one item is that item's Failure; an exception fails
        the whole batch. Must end by itself: a scorer that runs what it does not trust kills it in time."""
        ...

    def close(self) -> None: ...


def finite(outcome: Outcome) -> Outcome:
    """The outcome, or a Failure where it says NaN or infinity anywhere."""
    if isinstance(outcome, Failure):
        return outcome
    values = (outcome.value, *outcome.components.values(), *(outcome.step_values or ()))
    if all(map(math.isfinite, values)):
        return outcome
    return Failure("non_finite", f"the scorer said {outcome.value}")
