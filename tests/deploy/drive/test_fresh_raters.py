"""Each round's new labels are a test of the reward model before them, and every step's record says how it came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rollcall.deploy.drive.fresh_raters import FreshRaters
from rollcall.deploy.preferences.accuracy import accuracy_of
from rollcall.deploy.preferences.round_book import REWARD_MODELS, Round, book_round


def book(run: Path, *, labels: int, policy_version: int, right: int | None, of: int = 100) -> None:
    fresh = None if right is None else accuracy_of([1.0] * right + [-1.0] * (of - right)).as_dict()
    (run / REWARD_MODELS).mkdir(exist_ok=True)
    made = Round(labels, 100, policy_version, "v", swapped_in=True, fresh=fresh, held_out=None, agreement=None)
    book_round(run / REWARD_MODELS, made)


def told(observer: FreshRaters, step: int) -> dict[str, Any]:
    record: dict[str, Any] = {"step": step}
    observer.on_step(record)
    return {name: value for name, value in record.items() if name != "step"}


def test_a_step_is_told_the_newest_round_by_whose_model_it_was_scored(tmp_path: Path) -> None:
    observer = FreshRaters(tmp_path)
    assert told(observer, 0) == {}  # no book yet
    book(tmp_path, labels=100, policy_version=0, right=None)
    assert told(observer, 1) == {}, "before the second round no model has been tried on labels that it had not seen"
    book(tmp_path, labels=200, policy_version=4, right=80)
    assert told(observer, 3) == {}
    assert told(observer, 4) == {
        "reward_fresh_accuracy": 0.8,
        "reward_fresh_low": accuracy_of([1.0] * 80 + [-1.0] * 20).low,
    }
    book(tmp_path, labels=300, policy_version=8, right=52)
    assert told(observer, 7)["reward_fresh_accuracy"] == 0.8
    found = told(observer, 9)
    assert found["reward_fresh_accuracy"] == 0.52 and found["reward_fresh_low"] < 0.5


def test_a_run_that_goes_on_before_a_round_is_not_told_of_it_early(tmp_path: Path) -> None:
    for labels, version in ((100, 0), (200, 4), (300, 8)):
        book(tmp_path, labels=labels, policy_version=version, right=None if version == 0 else 70 + version)
    again = FreshRaters(tmp_path)
    assert told(again, 5)["reward_fresh_accuracy"] == 0.74
    assert told(again, 8)["reward_fresh_accuracy"] == 0.78
