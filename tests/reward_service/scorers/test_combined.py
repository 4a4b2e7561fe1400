"""Sums and ensembles of scorers, by hand-computed values; the parts are real scorers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome, Score, Scorer, Taken
from rollcall.reward_service.scorers.building import build_scorer
from rollcall.reward_service.scorers.combined import build_all
from rollcall.reward_service.scorers.combined import ensemble as ensemble_of
from rollcall.reward_service.scorers.combined_config import Take
from rollcall.reward_service.scorers.scorer_config import ScorerConfig

CONFIGS: TypeAdapter[ScorerConfig] = TypeAdapter(ScorerConfig)
LENGTH = {"kind": "length", "at_least": 4, "slack": 4}
EXACT = {"kind": "exact_match"}


def built(config: dict[str, Any]) -> Scorer:
    return build_scorer(CONFIGS.validate_python(config))


def outcomes(scorer: Scorer, *responses: str, **metadata: Any) -> list[Outcome]:
    items = [ScoreItem(id=str(n), prompt="p", response=r, metadata=metadata) for n, r in enumerate(responses)]
    return list(scorer.score(items))


class Fixed:
    """Says what it is told to."""

    takes: frozenset[Taken] = frozenset({"text"})
    cacheable = True

    def __init__(self, said: Outcome, version: str = "fixed-1") -> None:
        self.said = said
        self.version = version
        self.closed = False

    def cost(self, item: ScoreItem) -> int:
        return 1

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [self.said for _ in items]

    def close(self) -> None:
        self.closed = True


def ensemble(take: Take, *said: Outcome, deviations: float = 1.0) -> Scorer:
    return ensemble_of({f"m{n}": Fixed(outcome) for n, outcome in enumerate(said)}, take, deviations)


def test_a_sum_weighs_its_clipped_parts_and_names_them() -> None:
    parts = {
        "right": {"scorer": EXACT, "weight": 2},
        "long": {"scorer": LENGTH, "weight": -1, "at_least": 0.25, "at_most": 0.5},
    }
    scorer = built({"kind": "weighted_sum", "parts": parts})
    first, second = outcomes(scorer, "yes!", "", answer="yes!")
    assert first == Score(2 * 1 - 0.5, {"right": 1.0, "right.parsed": 1.0, "long": 1.0, "long.length": 4.0})
    assert second == Score(2 * 0 - 0.25, {"right": 0.0, "right.parsed": 1.0, "long": 0.0, "long.length": 0.0})


def test_a_part_that_has_no_score_leaves_the_item_without_one() -> None:
    scorer = built({"kind": "weighted_sum", "parts": {"right": {"scorer": EXACT}, "long": {"scorer": LENGTH}}})
    (outcome,) = outcomes(scorer, "yes")
    assert isinstance(outcome, Failure) and outcome.kind == "unsupported" and outcome.message.startswith("right: ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_clipping_makes_no_number_of_what_is_none(value: float) -> None:
    (outcome,) = outcomes(ensemble("min", Score(1.0), Score(value)), "r")
    assert isinstance(outcome, Failure) and outcome.kind == "non_finite"


def test_sums_nest_and_know_what_they_are_made_of() -> None:
    inner = {"kind": "weighted_sum", "parts": {"long": {"scorer": LENGTH, "weight": 3}}}
    outer = built({"kind": "weighted_sum", "parts": {"inner": {"scorer": inner, "at_most": 2}}})
    assert outcomes(outer, "four") == [Score(2.0, {"inner": 3.0, "inner.long": 1.0, "inner.long.length": 4.0})]
    changed = {"kind": "weighted_sum", "parts": {"long": {"scorer": {**LENGTH, "at_least": 5}, "weight": 3}}}
    other = built({"kind": "weighted_sum", "parts": {"inner": {"scorer": changed, "at_most": 2}}})
    again = built({"kind": "weighted_sum", "parts": {"inner": {"scorer": inner, "at_most": 2}}})
    assert outer.version == again.version != other.version


@pytest.mark.parametrize(("take", "value"), [("mean", 3.0), ("min", 1.0), ("lower_bound", 3.0 - 2 * math.sqrt(4))])
def test_an_ensemble_says_what_its_members_agree_on_and_how_far_they_do_not(take: Take, value: float) -> None:
    (outcome,) = outcomes(ensemble(take, Score(1.0), Score(3.0), Score(5.0), deviations=2), "r")
    assert isinstance(outcome, Score)
    assert outcome.value == pytest.approx(value)
    assert outcome.components == pytest.approx({"m0": 1.0, "m1": 3.0, "m2": 5.0, "disagreement": 2.0})


def test_an_ensemble_needs_all_its_members() -> None:
    (outcome,) = outcomes(ensemble("mean", Score(1.0), Failure("timeout", "too slow")), "r")
    assert outcome == Failure("timeout", "m1: too slow")


def test_a_member_that_cannot_be_built_closes_those_before_it() -> None:
    first = Fixed(Score(1.0))

    def fail() -> Scorer:
        raise BadInput("no such thing")

    with pytest.raises(BadInput):
        build_all({"a": lambda: first, "b": fail})
    assert first.closed


def test_settings_are_checked() -> None:
    for config in (
        {"kind": "weighted_sum", "parts": {}},
        {"kind": "weighted_sum", "parts": {"a": {"scorer": EXACT, "at_least": 1, "at_most": 0}}},
        {"kind": "ensemble", "members": {"a": EXACT}},
        {"kind": "ensemble", "members": {"a": EXACT, "b": {"kind": "none"}}},
    ):
        with pytest.raises(ValidationError):
            CONFIGS.validate_python(config)
