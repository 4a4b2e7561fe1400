"""Returns and advantages against their literal O(T^2) definitions, and against identities that each must keep."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollcall.learners.maths.returns import (
    discounted_returns,
    gae,
    linear_recurrence,
    n_step_returns,
    whole_episode_returns,
)

DISCOUNT, LAM = 0.9, 0.8

unhurried = settings(deadline=None)  # torch's first calls are slow, and so is a busy machine


@dataclass(frozen=True)
class Fragment:
    """Random experience. Inside an episode next_values[t] is values[t + 1], as the value of one observation is one."""

    rewards: Tensor
    values: Tensor
    next_values: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor

    def part(self, begin: int, end: int) -> Fragment:
        return Fragment(*(getattr(self, name)[begin:end] for name in self.__dataclass_fields__))

    def ends(self) -> dict[str, Tensor]:
        return {"terminated": self.terminated, "truncated": self.truncated, "mask": self.mask}

    def without_values(self) -> dict[str, Tensor]:
        return {"rewards": self.rewards, "next_values": self.next_values, **self.ends()}

    def arguments(self) -> dict[str, Tensor]:
        return {**self.without_values(), "values": self.values}


def random_fragment(
    num_steps: int, num_envs: int, seed: int, end_rate: float = 0.2, dead_rate: float = 0.1
) -> Fragment:
    rng = np.random.default_rng(seed)
    shape = (num_steps, num_envs)
    terminated = rng.random(shape) < end_rate / 2
    truncated = (rng.random(shape) < end_rate / 2) & ~terminated
    values, next_values = rng.normal(size=shape), rng.normal(size=shape)
    inside = ~(terminated | truncated)[:-1]
    next_values[:-1] = np.where(inside, values[1:], next_values[:-1])
    arrays = (rng.normal(size=shape), values, next_values, terminated, truncated, rng.random(shape) >= dead_rate)
    return Fragment(*(torch.from_numpy(array) for array in arrays))


fragments = st.builds(
    random_fragment,
    num_steps=st.integers(1, 40),
    num_envs=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    end_rate=st.sampled_from([0.0, 0.1, 0.6, 2.0]),
    dead_rate=st.sampled_from([0.0, 0.2, 0.9]),
)


def steps_of_episode(fragment: Fragment, t: int, b: int) -> list[int]:
    """t and the steps after it whose credit may reach it: up to an end, the last step, or one before a dead step."""
    steps = []
    for step in range(t, len(fragment.rewards)):
        if not fragment.mask[step, b]:
            break
        steps.append(step)
        if fragment.terminated[step, b] or fragment.truncated[step, b]:
            break
    return steps


def value_after(fragment: Fragment, step: int, b: int) -> float:
    return 0.0 if fragment.terminated[step, b] else float(fragment.next_values[step, b])


def literal_gae(fragment: Fragment) -> Tensor:
    """A_t = sum over k of (discount * lambda)^k * delta_{t+k}, over the steps left of the episode."""
    result = torch.zeros_like(fragment.rewards)
    for t, b in np.ndindex(*result.shape):
        for k, step in enumerate(steps_of_episode(fragment, t, b)):
            delta = fragment.rewards[step, b] + DISCOUNT * value_after(fragment, step, b) - fragment.values[step, b]
            result[t, b] += (DISCOUNT * LAM) ** k * delta
    return result


def literal_n_step(fragment: Fragment, n: int) -> Tensor:
    """G_t = sum over k < m of discount^k * r_{t+k} + discount^m * V(x_{t+m}), m = min(n, steps left)."""
    result = torch.zeros_like(fragment.rewards)
    for t, b in np.ndindex(*result.shape):
        steps = steps_of_episode(fragment, t, b)[:n]
        for k, step in enumerate(steps):
            result[t, b] += DISCOUNT**k * fragment.rewards[step, b]
        if steps:
            result[t, b] += DISCOUNT ** len(steps) * value_after(fragment, steps[-1], b)
    return result


@unhurried
@given(fragments)
def test_gae_equals_its_definition(fragment: Fragment) -> None:
    advantages, returns = gae(**fragment.arguments(), discount=DISCOUNT, lam=LAM)
    torch.testing.assert_close(advantages, literal_gae(fragment))
    torch.testing.assert_close(returns, advantages + fragment.values)


@unhurried
@given(fragments, st.integers(1, 50))
def test_n_step_returns_equal_their_definition(fragment: Fragment, n: int) -> None:
    returns = n_step_returns(**fragment.without_values(), discount=DISCOUNT, n=n)
    torch.testing.assert_close(returns, literal_n_step(fragment, n))


@unhurried
@given(fragments)
def test_discounted_returns_equal_their_definition(fragment: Fragment) -> None:
    returns = discounted_returns(**fragment.without_values(), discount=DISCOUNT)
    torch.testing.assert_close(returns, literal_n_step(fragment, len(returns)))


@unhurried
@given(fragments)
def test_whole_episode_returns_give_each_step_the_return_of_its_episodes_first_step(fragment: Fragment) -> None:
    to_go = literal_n_step(fragment, len(fragment.rewards))
    expected = torch.zeros_like(to_go)
    for t, b in np.ndindex(*to_go.shape):
        first = t
        while first > 0 and len(steps_of_episode(fragment, first - 1, b)) > 1:
            first -= 1
        expected[t, b] = to_go[first, b]
    torch.testing.assert_close(whole_episode_returns(returns=to_go, **fragment.ends()), expected)


@unhurried
@given(fragments)
def test_gae_with_lambda_one_is_the_discounted_return_less_the_value(fragment: Fragment) -> None:
    # Telescoping supposes that V(x_{t+1}) is the same number in next_values[t] and in values[t+1].
    fragment = replace(fragment, mask=torch.ones_like(fragment.mask))
    _, returns = gae(**fragment.arguments(), discount=DISCOUNT, lam=1.0)
    torch.testing.assert_close(returns, discounted_returns(**fragment.without_values(), discount=DISCOUNT))


@unhurried
@given(fragments)
def test_gae_with_lambda_zero_is_the_one_step_error(fragment: Fragment) -> None:
    fragment = replace(fragment, mask=torch.ones_like(fragment.mask))
    _, returns = gae(**fragment.arguments(), discount=DISCOUNT, lam=0.0)
    torch.testing.assert_close(returns, n_step_returns(**fragment.without_values(), discount=DISCOUNT, n=1))


@unhurried
@given(fragments, st.data())
def test_a_long_fragment_equals_its_two_parts_when_the_first_bootstraps_from_the_second(
    fragment: Fragment, data: st.DataObject
) -> None:
    border = data.draw(st.integers(0, len(fragment.rewards)))
    whole = discounted_returns(**fragment.without_values(), discount=DISCOUNT)
    first, second = fragment.part(0, border), fragment.part(border, len(fragment.rewards))
    if not len(first.rewards) or not len(second.rewards):
        return
    returns_of_second = discounted_returns(**second.without_values(), discount=DISCOUNT)
    bootstrap = first.next_values.clone()
    goes_on = second.mask[0] & ~first.terminated[-1] & ~first.truncated[-1]
    bootstrap[-1] = torch.where(goes_on, returns_of_second[0], bootstrap[-1])
    returns_of_first = discounted_returns(**(first.without_values() | {"next_values": bootstrap}), discount=DISCOUNT)
    torch.testing.assert_close(torch.cat([returns_of_first, returns_of_second]), whole)


@unhurried
@given(fragments, fragments)
def test_two_episodes_equal_their_concatenation(one: Fragment, two: Fragment) -> None:
    one = replace(one, truncated=one.truncated.clone())
    one.truncated[-1] = ~one.terminated[-1]  # whatever its kind, the first episode ends with its last step
    num_envs = min(one.rewards.shape[1], two.rewards.shape[1])
    one, two = (Fragment(*(getattr(f, n)[:, :num_envs] for n in f.__dataclass_fields__)) for f in (one, two))
    both = Fragment(*(torch.cat([getattr(one, n), getattr(two, n)]) for n in one.__dataclass_fields__))
    apart = [gae(**f.arguments(), discount=DISCOUNT, lam=LAM).advantages for f in (one, two)]
    together = gae(**both.arguments(), discount=DISCOUNT, lam=LAM).advantages
    torch.testing.assert_close(together, torch.cat(apart))
    apart = [n_step_returns(**f.without_values(), discount=DISCOUNT, n=3) for f in (one, two)]
    torch.testing.assert_close(n_step_returns(**both.without_values(), discount=DISCOUNT, n=3), torch.cat(apart))


@unhurried
@given(fragments, st.integers(1, 20))
def test_padding_after_the_end_changes_no_bit(fragment: Fragment, padding: int) -> None:
    shape = (padding, fragment.rewards.shape[1])
    empty = {n: torch.zeros(shape, dtype=getattr(fragment, n).dtype) for n in fragment.__dataclass_fields__}
    padded = Fragment(**{n: torch.cat([getattr(fragment, n), empty[n]]) for n in empty})
    short = gae(**fragment.arguments(), discount=DISCOUNT, lam=LAM).advantages
    long = gae(**padded.arguments(), discount=DISCOUNT, lam=LAM).advantages
    assert torch.equal(long[: len(short)], short)
    assert not long[len(short) :].any()


@unhurried
@given(fragments)
def test_what_stands_at_a_dead_step_reaches_no_other(fragment: Fragment) -> None:
    spoilt = replace(fragment, rewards=fragment.rewards.clone(), values=fragment.values.clone())
    spoilt.rewards[~fragment.mask] = torch.nan
    spoilt.values[~fragment.mask] = torch.nan
    clean = gae(**fragment.arguments(), discount=DISCOUNT, lam=LAM).advantages
    assert torch.equal(gae(**spoilt.arguments(), discount=DISCOUNT, lam=LAM).advantages, clean)
    assert not clean[~fragment.mask].any()


def three_steps(**changes: Tensor) -> dict[str, Tensor]:
    """One env, rewards 1, 2, 4, values all 10, the value after each step 100; no end."""
    none = torch.zeros(3, 1, dtype=torch.bool)
    steps = {
        "rewards": torch.tensor([[1.0], [2.0], [4.0]]),
        "values": torch.full((3, 1), 10.0),
        "next_values": torch.full((3, 1), 100.0),
        "terminated": none,
        "truncated": none,
    }
    return steps | changes


MIDDLE = torch.tensor([[False], [True], [False]])


def test_truncation_bootstraps_but_termination_does_not() -> None:
    terminated = gae(**three_steps(terminated=MIDDLE), discount=0.5, lam=1.0).advantages[:, 0]
    truncated = gae(**three_steps(truncated=MIDDLE), discount=0.5, lam=1.0).advantages[:, 0]
    # delta is r + 50 - 10 with a bootstrap and r - 10 without; credit travels by 0.5 a step.
    assert terminated.tolist() == [41 + 0.5 * -8, -8, 44]
    assert truncated.tolist() == [41 + 0.5 * 42, 42, 44]


def test_the_last_step_of_a_fragment_bootstraps() -> None:
    steps = three_steps()
    del steps["values"]
    assert discounted_returns(**steps, discount=0.5)[:, 0].tolist() == [1 + 1 + 1 + 12.5, 2 + 2 + 25, 4 + 50]


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_no_credit_crosses_either_kind_of_end(kind: str) -> None:
    def up_to_the_end(reward_after: float) -> list[Tensor]:
        steps = three_steps(**{kind: MIDDLE})
        steps["rewards"] = torch.tensor([[1.0], [2.0], [reward_after]])
        advantages = gae(**steps, discount=0.5, lam=1.0).advantages
        del steps["values"]
        return [
            advantages[:2],
            discounted_returns(**steps, discount=0.5)[:2],
            n_step_returns(**steps, discount=0.5, n=2)[:2],
        ]

    for before, after in zip(up_to_the_end(4.0), up_to_the_end(1e6), strict=True):
        assert torch.equal(before, after)


@unhurried
@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_the_doubling_recurrence_equals_the_loop(num_steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    increments, decays = torch.randn(2, num_steps, 2, generator=generator, dtype=torch.float64).unbind()
    decays = decays.clamp(-1, 1)
    expected = torch.zeros_like(increments)
    carry = torch.zeros(2, dtype=torch.float64)
    for t in reversed(range(num_steps)):
        carry = increments[t] + decays[t] * carry
        expected[t] = carry
    torch.testing.assert_close(linear_recurrence(increments=increments, decays=decays), expected)


@pytest.mark.parametrize("name", ["values", "next_values", "terminated", "truncated"])
def test_a_wrong_shape_is_refused_by_name(name: str) -> None:
    steps = three_steps()
    steps[name] = steps[name][:2]
    with pytest.raises(ValueError, match=rf"^{name} has shape \[2, 1\]"):
        gae(**steps, discount=0.9, lam=0.9)


def test_rewards_without_an_env_axis_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards has shape \[3\]: it must be \[T, B\]"):
        gae(**{name: tensor[:, 0] for name, tensor in three_steps().items()}, discount=0.9, lam=0.9)
