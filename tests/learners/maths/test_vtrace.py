"""V-trace against the sums and products of the paper (arXiv:1802.01561, section 4.1), and its identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollcall.learners.maths.returns import discounted_returns, gae
from rollcall.learners.maths.vtrace import vtrace

DISCOUNT = 0.9

unhurried = settings(deadline=None)  # torch's first calls are slow, and so is a busy machine
bounds = st.sampled_from([0.5, 1.0, 2.0, math.inf])


def random_experience(num_steps: int, num_envs: int, seed: int, end_rate: float, dead_rate: float) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    shape = (num_steps, num_envs)
    terminated = rng.random(shape) < end_rate / 2
    truncated = (rng.random(shape) < end_rate / 2) & ~terminated
    values, next_values = rng.normal(size=shape), rng.normal(size=shape)
    next_values[:-1] = np.where((terminated | truncated)[:-1], next_values[:-1], values[1:])
    arrays = {
        "behaviour_logprobs": rng.normal(size=shape),
        "target_logprobs": rng.normal(size=shape),
        "rewards": rng.normal(size=shape),
        "values": values,
        "next_values": next_values,
        "terminated": terminated,
        "truncated": truncated,
        "mask": rng.random(shape) >= dead_rate,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


experiences = st.builds(
    random_experience,
    num_steps=st.integers(1, 25),
    num_envs=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    end_rate=st.sampled_from([0.0, 0.1, 0.6, 2.0]),
    dead_rate=st.sampled_from([0.0, 0.2]),
)


def literal_vtrace(x: dict[str, Tensor], *, lam: float, rho_bar: float, c_bar: float) -> tuple[Tensor, Tensor]:
    """Every v_s as the sum over t of discounted, traced deltas; every advantage from the v_{s+1} so found."""
    ratio = torch.exp(x["target_logprobs"] - x["behaviour_logprobs"])
    num_steps, num_envs = ratio.shape
    vs, advantages = x["values"].clone(), torch.zeros_like(ratio)

    def ends(t: int, b: int) -> bool:
        border = t == num_steps - 1 or not x["mask"][t + 1, b]
        return bool(border or x["terminated"][t, b] or x["truncated"][t, b])

    def next_value(t: int, b: int) -> float:
        return 0.0 if x["terminated"][t, b] else float(x["next_values"][t, b])

    for s, b in np.ndindex(num_steps, num_envs):
        if not x["mask"][s, b]:
            continue
        for t in range(s, num_steps):
            trace = math.prod(lam * min(c_bar, float(ratio[i, b])) for i in range(s, t))
            rho = min(rho_bar, float(ratio[t, b]))
            delta = rho * (x["rewards"][t, b] + DISCOUNT * next_value(t, b) - x["values"][t, b])
            vs[s, b] += DISCOUNT ** (t - s) * trace * delta
            if ends(t, b):
                break
    for s, b in np.ndindex(num_steps, num_envs):
        if x["mask"][s, b]:
            following = next_value(s, b) if ends(s, b) else vs[s + 1, b]
            advantages[s, b] = x["rewards"][s, b] + DISCOUNT * following - x["values"][s, b]
    return vs, advantages


@unhurried
@given(experiences, bounds, bounds, st.sampled_from([0.0, 0.7, 1.0]))
def test_vtrace_equals_the_papers_definition(x: dict[str, Tensor], rho_bar: float, c_bar: float, lam: float) -> None:
    vs, advantages = literal_vtrace(x, lam=lam, rho_bar=rho_bar, c_bar=c_bar)
    result = vtrace(**x, discount=DISCOUNT, lam=lam, rho_bar=rho_bar, c_bar=c_bar)
    torch.testing.assert_close(result.vs, vs)
    torch.testing.assert_close(result.advantages, advantages)


def on_policy(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return x | {"target_logprobs": x["behaviour_logprobs"], "mask": torch.ones_like(x["mask"])}


@unhurried
@given(experiences, st.sampled_from([1.0, 2.0, math.inf]))
def test_on_policy_vtrace_with_lambda_one_is_the_n_step_return(x: dict[str, Tensor], bound: float) -> None:
    x = on_policy(x)
    result = vtrace(**x, discount=DISCOUNT, lam=1.0, rho_bar=bound, c_bar=bound)
    names = ("rewards", "next_values", "terminated", "truncated")
    returns = discounted_returns(**{name: x[name] for name in names}, discount=DISCOUNT)
    torch.testing.assert_close(result.vs, returns)
    torch.testing.assert_close(result.advantages, returns - x["values"])


@unhurried
@given(experiences, st.sampled_from([0.0, 0.5, 0.95]))
def test_on_policy_vtrace_targets_are_the_returns_of_gae(x: dict[str, Tensor], lam: float) -> None:
    x = on_policy(x)
    result = vtrace(**x, discount=DISCOUNT, lam=lam, rho_bar=1.0, c_bar=1.0)
    names = ("rewards", "values", "next_values", "terminated", "truncated")
    torch.testing.assert_close(result.vs, gae(**{n: x[n] for n in names}, discount=DISCOUNT, lam=lam).returns)


@unhurried
@given(experiences, experiences)
def test_two_episodes_equal_their_concatenation(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    num_envs = min(one["rewards"].shape[1], two["rewards"].shape[1])
    one, two = ({name: tensor[:, :num_envs].clone() for name, tensor in x.items()} for x in (one, two))
    one["truncated"][-1] = ~one["terminated"][-1]
    both = {name: torch.cat([one[name], two[name]]) for name in one}
    together, first, second = (
        vtrace(**x, discount=DISCOUNT, lam=1.0, rho_bar=2.0, c_bar=1.0) for x in (both, one, two)
    )
    torch.testing.assert_close(together.vs, torch.cat([first.vs, second.vs]))
    torch.testing.assert_close(together.advantages, torch.cat([first.advantages, second.advantages]))


def two_steps(ratio: float) -> dict[str, Tensor]:
    """One env, two steps with reward 1 and all values 0, the second terminates; both ratios as given."""
    zeros = torch.zeros(2, 1)
    return {
        "behaviour_logprobs": zeros,
        "target_logprobs": torch.full((2, 1), math.log(ratio)),
        "rewards": torch.ones(2, 1),
        "values": zeros,
        "next_values": zeros,
        "terminated": torch.tensor([[False], [True]]),
        "truncated": torch.zeros(2, 1, dtype=torch.bool),
    }


def test_rho_bar_scales_the_errors_and_c_bar_only_how_far_they_travel() -> None:
    def values_at(rho_bar: float, c_bar: float) -> list[float]:
        result = vtrace(**two_steps(3.0), discount=0.5, lam=1.0, rho_bar=rho_bar, c_bar=c_bar)
        return [round(v, 5) for v in result.vs[:, 0].tolist()]

    # By hand: v_1 = rho * 1, and v_0 = rho * 1 + 0.5 * c_0 * rho * 1.
    assert values_at(1.0, 1.0) == [1.5, 1.0]
    assert values_at(2.0, 1.0) == [3.0, 2.0]
    assert values_at(1.0, 2.0) == [2.0, 1.0]
    assert values_at(2.0, 2.0) == [4.0, 2.0]
    assert values_at(math.inf, math.inf) == [7.5, 3.0]


def test_lambda_shortens_the_trace() -> None:
    result = vtrace(**two_steps(3.0), discount=0.5, lam=0.5, rho_bar=1.0, c_bar=1.0)
    assert [round(v, 5) for v in result.vs[:, 0].tolist()] == [1.25, 1.0]


def test_a_wrong_shape_is_refused_by_name() -> None:
    x = two_steps(1.0) | {"behaviour_logprobs": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"^behaviour_logprobs has shape \[2\]: it must be \[2, 1\]"):
        vtrace(**x, discount=0.9, lam=1.0, rho_bar=1.0, c_bar=1.0)
