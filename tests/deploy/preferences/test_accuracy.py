"""Accuracy with its interval and calibration, against values worked out by hand."""

from __future__ import annotations

import random

import pytest

from rollcall.deploy.preferences.accuracy import accuracy_of, calibration


def test_right_is_above_zero_and_exactly_zero_is_a_guess() -> None:
    assert accuracy_of([1.0, 0.1, -0.2, 0.0]).accuracy == pytest.approx(2.5 / 4)
    with pytest.raises(ValueError, match="differences is empty"):
        accuracy_of([])


def test_the_interval_is_wilsons() -> None:
    """8 of 10: 0.490 to 0.943, as in tables of Wilson's interval; all of 10: not 1 to 1."""
    found = accuracy_of([1.0] * 8 + [-1.0] * 2)
    assert (found.low, found.high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    sure = accuracy_of([1.0] * 10)
    assert (sure.low, sure.high) == (pytest.approx(0.722, abs=1e-3), pytest.approx(1.0))


def test_the_calibration_error_is_the_weighted_gap_between_confidence_and_frequency() -> None:
    """Four predictions of 0.9, three right: |0.9 - 0.75|; two of 0.3, so 0.7 in the other, and wrong."""
    bins, error = calibration([0.9, 0.9, 0.9, 0.1, 0.3, 0.3])
    assert [(b.n, b.frequency) for b in bins] == [(2, 0.0), (4, 0.75)]
    assert [b.confidence for b in bins] == [pytest.approx(0.7), pytest.approx(0.9)]
    assert error == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.7)


def test_a_model_that_knows_its_chances_is_calibrated_and_one_that_exaggerates_is_not() -> None:
    """20,000 answers drawn with the predicted chance: about 2,000 a bin, so the error is below 1%."""
    generator = random.Random(5)
    chances = [generator.uniform(0.5, 1.0) for _ in range(20_000)]
    answered = [p if generator.random() < p else 1 - p for p in chances]
    assert calibration(answered)[1] < 0.01
    louder = [p**3 / (p**3 + (1 - p) ** 3) for p in answered]
    assert calibration(louder)[1] > 0.05
    assert sum(b.n for b in calibration(answered)[0]) == 20_000
