"""Advantages against the definitions written out as loops over groups and tokens."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcall.learners.maths import group_advantages

unhurried = settings(deadline=None)
seeds = st.integers(0, 2**32 - 1)
token_counts = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Rewards, few of them different, and groups 0..P-1 of any sizes in any order."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    group = draw(st.permutations([number for number, count in enumerate(counts) for _ in range(count)]))
    rewards = draw(st.lists(st.sampled_from([0.0, 0.1, 0.7, 1.0]), min_size=len(group), max_size=len(group)))
    return rewards, list(group)


def tensors(rewards: list[float], group: list[int]) -> dict[str, Any]:
    return {"rewards": torch.tensor(rewards, dtype=torch.float64), "group": torch.tensor(group)}


def of_group(rewards: list[float], group: list[int], number: int) -> list[float]:
    return [reward for reward, other in zip(rewards, group, strict=True) if other == number]


@unhurried
@given(grouped())
def test_group_relative_advantages_equal_the_definition(case: tuple[list[float], list[int]]) -> None:
    rewards, group = case
    centred = group_advantages.group_relative(**tensors(*case), normalise_std=False).tolist()
    normalised = group_advantages.group_relative(**tensors(*case), normalise_std=True).tolist()
    for i, (reward, number) in enumerate(zip(rewards, group, strict=True)):
        peers = of_group(rewards, group, number)
        expected = reward - statistics.mean(peers)
        deviation = statistics.stdev(peers) if len(peers) > 1 else 0.0
        assert centred[i] == pytest.approx(expected, abs=1e-12)
        assert normalised[i] == pytest.approx(expected / (deviation + 1e-6), abs=1e-9)


@unhurried
@given(grouped())
def test_leave_one_out_equals_the_definition(case: tuple[list[float], list[int]]) -> None:
    rewards, group = case
    advantages = group_advantages.leave_one_out(**tensors(*case)).tolist()
    for i, (reward, number) in enumerate(zip(rewards, group, strict=True)):
        others = [r for j, r in enumerate(rewards) if group[j] == number and j != i]
        expected = reward - statistics.mean(others) if others else 0.0
        assert advantages[i] == pytest.approx(expected, abs=1e-12)


@unhurried
@given(grouped())
def test_a_group_is_degenerate_when_it_has_one_reward_only(case: tuple[list[float], list[int]]) -> None:
    rewards, group = case
    expected = [len(set(of_group(rewards, group, number))) == 1 for number in group]
    assert group_advantages.is_degenerate(**tensors(*case)).tolist() == expected


def test_a_degenerate_group_has_advantages_of_exactly_zero() -> None:
    rewards, group = torch.full((7,), 0.1), torch.zeros(7, dtype=torch.int64)
    assert not group_advantages.group_relative(rewards=rewards, group=group, normalise_std=True).any()
    assert not group_advantages.leave_one_out(rewards=rewards, group=group).any()


def test_whitening_has_the_moments_of_all_counted_tokens() -> None:
    values = torch.tensor([1.0, 2.0, 6.0, 100.0])
    white = group_advantages.whiten(values=values, mask=torch.tensor([1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(white[:3], (values[:3] - 3.0) / values[:3].std(correction=0))
    assert white.dtype == values.dtype


def test_equal_values_are_whitened_to_nothing() -> None:
    assert group_advantages.whiten(values=torch.full((1001,), 0.1)).abs().max() < 1e-5


def test_the_overlong_penalty_falls_linearly_over_the_buffer() -> None:
    penalty = group_advantages.soft_overlong_penalty(
        lengths=torch.tensor([1, 80, 85, 95, 100, 120]), max_length=100, buffer=20
    )
    torch.testing.assert_close(penalty, torch.tensor([0.0, 0.0, -0.25, -0.75, -1.0, -1.0]))


@pytest.mark.parametrize("buffer", [0, 101])
def test_the_overlong_penalty_refuses_a_buffer_that_does_not_fit(buffer: int) -> None:
    with pytest.raises(ValueError, match="buffer"):
        group_advantages.soft_overlong_penalty(lengths=torch.tensor([1]), max_length=100, buffer=buffer)


def test_a_samples_reward_stands_at_its_last_token() -> None:
    tokens = group_advantages.rewards_to_tokens(rewards=torch.tensor([2.0, 3.0]), lengths=torch.tensor([3, 1]))
    assert tokens.tolist() == [0.0, 0.0, 2.0, 3.0]


def literal_gae(rewards: list[float], values: list[float], discount: float, lam: float) -> list[float]:
    """The definition for one sample: A_t = sum over k of (discount * lam)^k * delta_{t+k}, O(T^2)."""
    ahead = [*values[1:], 0.0]
    deltas = [r + discount * after - v for r, v, after in zip(rewards, values, ahead, strict=True)]
    return [sum((discount * lam) ** k * deltas[t + k] for k in range(len(rewards) - t)) for t in range(len(rewards))]


@unhurried
@given(token_counts, seeds, st.sampled_from([(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)]))
def test_token_gae_equals_the_definition_of_each_sample_by_itself(
    lengths: list[int], seed: int, settings: tuple[float, float]
) -> None:
    discount, lam = settings
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, sum(lengths), generator=generator, dtype=torch.float64)
    advantages, returns = group_advantages.token_gae(
        rewards=rewards, values=values, lengths=torch.tensor(lengths), discount=discount, lam=lam
    )
    expected: list[float] = []
    for r, v in zip(rewards.split(lengths), values.split(lengths), strict=True):
        expected += literal_gae(r.tolist(), v.tolist(), discount, lam)
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(returns, advantages + values)


def test_without_values_and_with_lam_one_token_gae_is_the_reward_to_go() -> None:
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    to_go, _ = group_advantages.token_gae(
        rewards=rewards, values=torch.zeros(5), lengths=torch.tensor([3, 2]), discount=1.0, lam=1.0
    )
    assert to_go.tolist() == [7.0, 6.0, 4.0, 24.0, 16.0]


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="group has shape"):
        group_advantages.leave_one_out(rewards=torch.zeros(2), group=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="values has shape"):
        group_advantages.token_gae(
            rewards=torch.zeros(3), values=torch.zeros(2), lengths=torch.tensor([3]), discount=1.0, lam=1.0
        )
    with pytest.raises(ValueError, match="lengths"):
        group_advantages.rewards_to_tokens(rewards=torch.zeros(2), lengths=torch.tensor([1, 0]))
