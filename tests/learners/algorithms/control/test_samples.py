"""Rows and minibatches: nothing is lost, nothing counted twice, no sequence cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcall.cluster.messages.arrays import map_arrays
from rollcall.cluster.messages.steps import EnvSteps
from rollcall.learners.algorithms.control.samples import (
    StepRows,
    assess,
    batch_rows,
    evaluate,
    shuffled_grid,
)
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.models.networks import ActorCritic

MakePolicy = Callable[..., ActorCritic]
MakeBatch = Callable[..., GymBatch]


@dataclass(frozen=True)
class Numbers:
    identity: torch.Tensor


def numbered(num_rows: int) -> StepRows[Numbers]:
    nothing = torch.zeros(num_rows)
    fixed = dict.fromkeys(
        ("actions", "behaviour_logprobs", "rewards", "terminated", "truncated", "episode_starts"), nothing
    )
    return StepRows(EnvSteps(observations={}, mask=torch.ones(num_rows), **fixed), Numbers(torch.arange(num_rows)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_every_row_is_in_exactly_one_minibatch(num_rows: int, num_minibatches: int, seed: int) -> None:
    rows = numbered(num_rows)
    minibatches = list(shuffled_grid(rows, num_minibatches, generator(seed)).minibatches())
    assert len(minibatches) == min(num_minibatches, num_rows)
    counted = torch.cat([m.rows.targets.identity[m.rows.mask.bool()] for m in minibatches])
    assert sorted(counted.tolist()) == list(range(num_rows))
    # One shape for all, so that a compiled loss is compiled once; their sizes differ by one at most.
    assert len({len(m.rows.mask) for m in minibatches}) == 1
    sizes = [float(m.num_valid) for m in minibatches]
    assert sum(sizes) == num_rows
    assert max(sizes) - min(sizes) <= 1
    assert [m.ends_epoch for m in minibatches] == [False] * (len(minibatches) - 1) + [True]


def test_num_valid_excludes_masked_steps(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy()
    batch = make_batch(policy, dead_rate=0.4)
    assert 0 < int(batch.steps.mask.sum()) < batch.steps.mask.numel()
    minibatches = list(shuffled_grid(batch_rows(policy, batch, None), 3, generator()).minibatches())
    assert [float(m.num_valid) for m in minibatches] == [float(m.rows.mask.sum()) for m in minibatches]
    assert sum(float(m.num_valid) for m in minibatches) == int(batch.steps.mask.sum())


def test_a_minibatch_of_dead_steps_divides_by_one_and_not_by_zero() -> None:
    rows = numbered(4)
    rows.mask.zero_()
    (minibatch,) = shuffled_grid(rows, 1, generator()).minibatches()
    assert float(minibatch.num_valid) == 1.0


def test_the_order_of_samples_is_the_generators_alone() -> None:
    rows = numbered(32)
    first, again, other = (shuffled_grid(rows, 4, generator(seed)).rows.targets.identity for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    source = generator(1)
    epochs = [shuffled_grid(rows, 4, source).rows.targets.identity for _ in range(2)]
    assert not torch.equal(epochs[0], epochs[1])


def test_recurrent_minibatches_keep_sequences_whole(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy(recurrent="lstm")
    batch = make_batch(policy, num_envs=5)
    assert batch.initial_recurrent_state is not None
    seen = []
    for minibatch in shuffled_grid(batch_rows(policy, batch, None), 2, generator()).minibatches():
        for i in range(len(minibatch.rows.mask)):
            row = map_arrays(minibatch.rows, itemgetter(i))
            (env,) = (
                b
                for b in range(5)
                if torch.equal(row.steps.observations["observation"], batch.steps.observations["observation"][:, b])
            )
            assert row.initial_state is not None
            assert torch.equal(row.initial_state, batch.initial_recurrent_state[:, env])
            assert torch.equal(row.steps.actions, batch.steps.actions[:, env])
            assert torch.equal(row.steps.episode_starts, batch.steps.episode_starts[:, env])
            if env not in seen:
                assert torch.equal(row.mask.bool(), batch.steps.mask[:, env])
            seen.append(env)
    assert set(seen) == set(range(5))


@pytest.mark.parametrize("config", [{}, {"shared_torso": True}, {"recurrent": "lstm"}, {"recurrent": "gru"}], ids=str)
def test_the_recomputed_ratio_is_one_before_the_first_update(
    make_policy: MakePolicy, make_batch: MakeBatch, config: dict[str, Any]
) -> None:
    policy = make_policy(**config)
    batch = make_batch(policy, forbid=True)
    before = assess(policy, batch, algorithm="a test")
    assert not before.logprobs.requires_grad
    torch.testing.assert_close(
        before.logprobs[batch.steps.mask], batch.steps.behaviour_logprobs[batch.steps.mask], atol=1e-5, rtol=0
    )
    torch.testing.assert_close((before.values, before.next_values), policy.bootstrap(batch))
    for minibatch in shuffled_grid(batch_rows(policy, batch, None), 2, generator()).minibatches():
        valid = minibatch.rows.mask.bool()
        logprobs = evaluate(policy, minibatch.rows).logprobs
        torch.testing.assert_close(logprobs[valid], minibatch.rows.steps.behaviour_logprobs[valid], atol=1e-5, rtol=0)


@pytest.mark.parametrize("recurrent", ["none", "lstm"])
def test_values_of_rows_are_the_values_before_each_step(
    make_policy: MakePolicy, make_batch: MakeBatch, recurrent: str
) -> None:
    policy = make_policy(recurrent=recurrent)
    batch = make_batch(policy)
    values, _ = policy.bootstrap(batch)
    rows = batch_rows(policy, batch, Numbers(values))
    with torch.no_grad():
        now = evaluate(policy, rows).values
    assert now is not None
    torch.testing.assert_close(now, rows.targets.identity)
