"""The set on which group-robust DPO is held against DPO: groups of known size and taste, which no one answer suits."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.prove_group_robust import GROUPS, HELD_OUT, interest, measures, write_set
from rollcall.actors.tasks.reviews import kindness
from rollcall.reward_service.preferences.files import PreferencePair, read_preferences


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> list[list[PreferencePair]]:
    """(learnt from, held out) of seed 3"""
    found = [read_preferences(path) for path in write_set(tmp_path_factory.mktemp("set"), 3)]
    return [[item for item in side if isinstance(item, PreferencePair)] for side in found]


def right(pairs: list[PreferencePair], degrees: float) -> dict[str, float]:
    """Of each group's pairs, the share that one taste orders as the group does; a draw is half right."""
    a = math.radians(degrees)

    def taste(review: str) -> float:
        return math.cos(a) * kindness(review) + math.sin(a) * interest(review)

    found: dict[str, list[float]] = {group.name: [] for group in GROUPS}
    for pair in pairs:
        apart = taste(pair.chosen) - taste(pair.rejected)
        found[str(pair.group)].append(0.5 if abs(apart) < 1e-9 else float(apart > 0))
    return {name: sum(values) / len(values) for name, values in found.items()}


def test_groups_differ_in_size_and_none_is_named_where_a_model_could_read_it(
    sides: list[list[PreferencePair]], tmp_path: Path
) -> None:
    train, held_out = sides
    assert Counter(pair.group for pair in train) == {"many": 2800, "some": 800, "few": 400}
    assert Counter(pair.group for pair in held_out) == {group.name: HELD_OUT for group in GROUPS}
    assert not any(str(pair.group) in f"{pair.prompt} {pair.chosen} {pair.rejected}" for pair in train)
    again, _ = write_set(tmp_path, 3)
    assert (
        again.read_bytes() == write_set(tmp_path / "other", 3)[0].read_bytes() != write_set(tmp_path, 4)[0].read_bytes()
    )


def test_each_group_orders_by_its_own_taste_and_the_smallest_sees_what_is_hard_to_tell_apart(
    sides: list[list[PreferencePair]],
) -> None:
    groups = {group.name: group for group in GROUPS}
    for pair in [*sides[0], *sides[1]]:
        group = groups[str(pair.group)]
        apart = group.likes(pair.chosen) - group.likes(pair.rejected)
        assert group.gap <= apart <= group.most


def test_no_one_taste_suits_all_and_the_majoritys_is_worse_than_a_coin_for_the_few(
    sides: list[list[PreferencePair]],
) -> None:
    held_out = sides[1]
    of_majority = right(held_out, 0.0)
    assert of_majority["many"] == 1.0 and of_majority["some"] > 0.8 and of_majority["few"] < 0.45
    by_angle = {degrees: right(held_out, degrees) for degrees in range(0, 125, 5)}
    best = max(by_angle, key=lambda degrees: min(by_angle[degrees].values()))
    assert 60 <= best <= 90, "between the two that compete"
    assert 0.58 < min(by_angle[best].values()) < 0.7, "so much is to be had for the worst group, by one linear taste"


def test_what_is_compared_is_the_worst_group_and_both_means() -> None:
    groups = {"many": (0.9, 0.2), "some": (0.8, 0.4), "few": (0.4, 1.2)}
    own = {name: {"accuracy": accuracy, "loss": loss} for name, (accuracy, loss) in groups.items()}
    found = measures({"groups": own, "worst_group_accuracy": 0.4, "worst_group_loss": 1.2})
    assert found["worst group's accuracy"] == 0.4 and found["worst group's loss"] == 1.2
    assert found["accuracy, groups alike"] == pytest.approx(0.7)
    assert found["accuracy, by size"] == pytest.approx(0.7 * 0.9 + 0.2 * 0.8 + 0.1 * 0.4)
