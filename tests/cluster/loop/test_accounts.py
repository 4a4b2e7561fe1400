"""The record of a learner step: what is said of episodes, over how many, and from which checkpoint on."""

from __future__ import annotations

import pytest

from rollcall.cluster.loop.accounts import RETURN_WINDOW, Counters
from rollcall.cluster.messages.attempt import EpisodeStats, Header, Produced, Timing
from rollcall.cluster.messages.reports import StepOrder, StepReport


def record(counters: Counters, episodes: list[tuple[float, int]]) -> dict[str, object]:
    header = Header(ticket_id=0, attempt=1, epoch=1, policy_id="policy", actor_id="gym-0")
    stats = tuple(EpisodeStats(value, length) for value, length in episodes)
    produced = Produced(header, 0, 0, Timing(), num_steps=8, episodes=stats)
    report = StepReport(0, 1, skipped=False, update_s=0.1, wait_s=0.0, learning_rate=1e-3)
    return counters.count(StepOrder(0, 1, 0.0), [produced], report, publish_s=0.0, step_s=0.2)


def test_returns_and_lengths_are_means_of_the_last_episodes_and_unknown_before_the_first() -> None:
    counters = Counters()
    before = record(counters, [])
    assert before["return_mean"] is None and before["episode_length_mean"] is None
    first = record(counters, [(1.0, 10), (3.0, 30)])
    assert (first["return_mean"], first["episode_length_mean"]) == (2.0, 20.0)
    assert record(counters, [])["episode_length_mean"] == 20.0
    later = record(counters, [(5.0, 50)] * (RETURN_WINDOW - 1))
    assert later["episode_length_mean"] == pytest.approx((30 + 50 * (RETURN_WINDOW - 1)) / RETURN_WINDOW)
    again = Counters(**counters.as_json())
    assert record(again, []) == record(counters, [])


def test_a_checkpoint_from_before_lengths_were_counted_begins_to_count_them() -> None:
    kept = {name: value for name, value in Counters(recent_returns=[1.0]).as_json().items() if name != "recent_lengths"}
    found = record(Counters(**kept), [(3.0, 30)])
    assert (found["return_mean"], found["episode_length_mean"]) == (2.0, 30.0)
