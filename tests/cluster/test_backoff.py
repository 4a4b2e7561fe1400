"""Pauses between tries, with a clock that stands still but for them."""

from __future__ import annotations

import time

import pytest

from rollcall.cluster.backoff import Backoff


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + sum(pauses))
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_pauses_double_up_to_the_longest_give_or_take_a_half(slept: list[float]) -> None:
    backoff = Backoff(1000.0, first_s=1.0, longest_s=4.0)
    assert all(backoff.wait() for _ in range(5))
    assert all(0.5 * base <= pause <= 1.5 * base for base, pause in zip((1, 2, 4, 4, 4), slept, strict=True))


def test_what_the_other_side_asks_for_comes_on_top(slept: list[float]) -> None:
    assert Backoff(1000.0, first_s=1.0, longest_s=4.0).wait(30.0)
    assert 30.5 <= slept[0] <= 31.5


def test_the_last_pause_ends_at_the_deadline(slept: list[float]) -> None:
    backoff = Backoff(100.4, first_s=1.0, longest_s=4.0)
    assert backoff.wait()
    assert slept == pytest.approx([0.4])
    assert not backoff.wait()
    assert len(slept) == 1


def test_what_is_asked_for_beyond_the_deadline_is_not_waited_for(slept: list[float]) -> None:
    assert not Backoff(130.0, first_s=1.0, longest_s=4.0).wait(30.0)
    assert not slept
