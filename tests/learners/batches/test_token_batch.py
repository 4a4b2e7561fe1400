"""Language experience as one batch: token by token against plain lists, and parts that add up to the whole."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.batches.passes import MAX_PADDING, plan_micro_batches
from rollcall.learners.batches.token_batch import (
    TokenBatch,
    TokenMinibatch,
    TokenRows,
    collate_samples,
    each_token,
)

unhurried = settings(deadline=None)  # torch's first calls are slow, and so is a busy machine
seeds = st.integers(0, 2**32 - 1)
size_lists = st.lists(st.integers(1, 60), min_size=1, max_size=40)
STEP = 9


@dataclass(frozen=True)
class PlainSample:
    """A sample as lists, one entry a token."""

    tokens: list[int]
    sampled: list[bool]
    logprobs: list[float]
    versions: list[int]
    reward: float
    finish: str
    group: int


def plain_sample(rng: random.Random, group: int) -> PlainSample:
    """A prompt, a turn, perhaps what an environment answered and another turn; perhaps a turn that is empty."""
    mask = [False] * rng.randint(1, 4) + [True] * rng.randint(0, 6)
    if rng.random() < 0.5:
        mask += [False] * rng.randint(1, 3) + [True] * rng.randint(1, 4)
    return PlainSample(
        tokens=[rng.randrange(100) for _ in mask],
        sampled=mask,
        logprobs=[-rng.random() if sampled else 0.0 for sampled in mask],
        versions=[rng.randint(5, STEP) if sampled else -1 for sampled in mask],
        reward=rng.random(),
        finish=rng.choice(["stop", "length"]),
        group=group,
    )


def trajectory(samples: list[PlainSample]) -> LMTrajectory:
    versions = [version for sample in samples for version in sample.versions]
    offsets = np.cumsum([0, *(len(sample.tokens) for sample in samples)])
    return LMTrajectory(
        header=Header(ticket_id=0, attempt=1, epoch=1, policy_id="policy", actor_id="lm-0"),
        row=0,
        sample_offsets=offsets.astype(np.int64),
        token_ids=np.array([token for sample in samples for token in sample.tokens], np.int32),
        loss_mask=np.array([sampled for sample in samples for sampled in sample.sampled], bool),
        tokens=SampledTokens(np.array([logprob for sample in samples for logprob in sample.logprobs], np.float32)),
        version_spans=np.array([(i, i + 1, v) for i, v in enumerate(versions) if v >= 0], np.int64).reshape(-1, 3),
        rewards=np.array([sample.reward for sample in samples], np.float32),
        finish_reasons=tuple(sample.finish for sample in samples),
    )


def experience(seed: int, num_groups: int = 3) -> tuple[TokenBatch, list[PlainSample]]:
    """A collated batch, and the samples of it in which something was sampled."""
    rng = random.Random(seed)
    groups = [[plain_sample(rng, group) for _ in range(rng.randint(1, 4))] for group in range(num_groups)]
    groups[0].append(PlainSample([1, 2], [False, True], [0.0, -1.0], [-1, 7], 1.0, "stop", 0))
    batch = collate_samples([trajectory(group) for group in groups], step=STEP)
    return batch, [sample for group in groups for sample in group if any(sample.sampled)]


def batch_of_sizes(sizes: list[int]) -> TokenBatch:
    """Samples of so many tokens, all but the first sampled; at least two tokens each."""
    samples = []
    for size in [max(size, 2) for size in sizes]:
        versions = [-1] + [STEP] * (size - 1)
        mask = [version >= 0 for version in versions]
        samples.append(PlainSample([0] * size, mask, [0.0] * size, versions, 0.0, "stop", 0))
    return collate_samples([trajectory(samples)], step=STEP)


def sampled_tokens(samples: list[PlainSample]) -> list[tuple[int, int]]:
    """(sample, place in it) of every sampled token, in order."""
    return [(i, t) for i, sample in enumerate(samples) for t, sampled in enumerate(sample.sampled) if sampled]


# From trajectories to a batch.


@unhurried
@given(seeds)
def test_a_batch_holds_every_sampled_token_with_its_log_probability_and_its_lag(seed: int) -> None:
    batch, samples = experience(seed)
    tokens = sampled_tokens(samples)
    assert batch.token_ids[batch.sampled].tolist() == [samples[i].tokens[t] for i, t in tokens]
    assert batch.sequence.tolist() == [i for i, _ in tokens]
    assert batch.policy_lags.tolist() == [STEP - samples[i].versions[t] for i, t in tokens]
    torch.testing.assert_close(
        batch.tokens.behaviour_logprobs, torch.tensor([samples[i].logprobs[t] for i, t in tokens])
    )
    assert batch.num_sampled == len(tokens)


@unhurried
@given(seeds)
def test_a_batch_holds_every_sample_whole_with_what_it_earned(seed: int) -> None:
    batch, samples = experience(seed)
    bounds = batch.offsets.tolist()
    assert [batch.token_ids[a:b].tolist() for a, b in pairwise(bounds)] == [sample.tokens for sample in samples]
    assert batch.lengths.tolist() == [sum(sample.sampled) for sample in samples]
    assert batch.sampled_offsets().tolist() == np.cumsum([0, *(sum(s.sampled) for s in samples)]).tolist()
    assert batch.group.tolist() == [sample.group for sample in samples]
    assert batch.truncated.tolist() == [sample.finish == "length" for sample in samples]
    torch.testing.assert_close(batch.rewards, torch.tensor([sample.reward for sample in samples]))


def test_a_sample_of_which_nothing_was_sampled_is_left_out() -> None:
    empty = PlainSample([4, 5], [False, False], [0.0, 0.0], [-1, -1], 1.0, "length", 0)
    full = PlainSample([6, 7], [False, True], [0.0, -0.5], [-1, 8], 0.5, "stop", 0)
    batch = collate_samples([trajectory([empty, full])], step=STEP)
    assert (batch.token_ids.tolist(), batch.rewards.tolist(), batch.lengths.tolist()) == ([6, 7], [0.5], [1])
    with pytest.raises(ValueError, match="none of 1 trajectories"):
        collate_samples([trajectory([empty])], step=STEP)
    with pytest.raises(ValueError, match="trajectories is empty"):
        collate_samples([], step=STEP)


def test_another_reward_changes_nothing_else() -> None:
    batch, _ = experience(0)
    other = replace(batch, rewards=batch.rewards + 1)
    torch.testing.assert_close(other.rewards, batch.rewards + 1)
    assert all(getattr(other, n) is getattr(batch, n) for n in batch.__dataclass_fields__ if n != "rewards")


# Padded rows.


def literal_rows(samples: list[PlainSample], chosen: list[int]) -> tuple[list[list[int]], list[int], list[int]]:
    """(padded tokens, predictors, targets): the state after token t - 1 predicts token t."""
    width = max(len(samples[i].tokens) for i in chosen)
    padded = [samples[i].tokens + [0] * (width - len(samples[i].tokens)) for i in chosen]
    predictors, targets = [], []
    for row, i in enumerate(chosen):
        for t, sampled in enumerate(samples[i].sampled):
            if sampled:
                predictors.append(row * width + t - 1)
                targets.append(samples[i].tokens[t])
    return padded, predictors, targets


@unhurried
@given(seeds, st.randoms(use_true_random=False))
def test_the_predictor_of_a_sampled_token_is_the_state_before_it(seed: int, rng: random.Random) -> None:
    batch, samples = experience(seed)
    chosen = rng.sample(range(len(samples)), rng.randint(1, len(samples)))
    rows, indices = batch.rows(chosen)
    padded, predictors, targets = literal_rows(samples, chosen)
    assert rows.token_ids.tolist() == padded
    assert rows.predictors.tolist() == predictors
    assert rows.targets.tolist() == targets
    places = {token: index for index, token in enumerate(sampled_tokens(samples))}
    assert indices.tolist() == [places[i, t] for i in chosen for t, sampled in enumerate(samples[i].sampled) if sampled]


# Micro-batches.


def padding_of(sizes: list[int], part: list[int]) -> int:
    """Padding tokens of a part, of len(part) * (its longest) tokens."""
    return sum(max(sizes[i] for i in part) - sizes[i] for i in part)


def is_allowed(sizes: list[int], part: list[int], budget: int) -> bool:
    padded = len(part) * max(sizes[i] for i in part)
    return len(part) == 1 or (padded <= budget and padding_of(sizes, part) <= MAX_PADDING * padded + 1e-9)


@given(size_lists, st.integers(1, 300))
def test_micro_batches_hold_every_sample_once_within_the_budget_and_with_little_padding(
    sizes: list[int], budget: int
) -> None:
    parts = plan_micro_batches(sizes, range(len(sizes)), budget)
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    assert all(part for part in parts)
    assert all(is_allowed(sizes, part, budget) for part in parts)


@given(size_lists, st.integers(1, 300))
def test_a_micro_batch_ends_only_where_the_next_sample_does_not_fit(sizes: list[int], budget: int) -> None:
    parts = plan_micro_batches(sizes, range(len(sizes)), budget)
    for part, following in pairwise(parts):
        assert not is_allowed(sizes, [*part, following[0]], budget)


def test_samples_of_like_length_come_together_and_a_long_one_stays_alone() -> None:
    sizes = [10, 40, 9, 38, 100, 10]
    assert plan_micro_batches(sizes, range(6), 80) == [[4], [1, 3], [0, 5, 2]]
    assert plan_micro_batches(sizes, range(6), 79) == [[4], [1], [3], [0, 5, 2]]
    # 10 + 10 + 8: of 30 tokens 2 are padding. With a 7 for the 8, one sample less.
    assert plan_micro_batches([8, 10, 10], range(3), 80) == [[1, 2, 0]]
    assert plan_micro_batches([10, 10, 6], range(3), 80) == [[0, 1], [2]]


@unhurried
@given(size_lists, st.integers(1, 300), st.randoms(use_true_random=False))
def test_a_batch_divides_the_samples_that_it_is_asked_for(sizes: list[int], budget: int, rng: random.Random) -> None:
    batch = batch_of_sizes(sizes)
    chosen = rng.sample(range(len(sizes)), rng.randint(1, len(sizes)))
    parts = batch.micro_batches(chosen, budget)
    assert sorted(i for part in parts for i in part) == sorted(chosen)
    assert all(is_allowed([max(size, 2) for size in sizes], part, budget) for part in parts)


def test_the_padding_fraction_is_padding_over_all_tokens_of_the_forward_passes() -> None:
    batch = batch_of_sizes([10, 9, 5])
    assert batch.padding_fraction([[0, 1], [2]]) == pytest.approx(1 / 25)
    assert batch.padding_fraction([[0], [1], [2]]) == 0.0
    assert batch.padding_fraction([[0, 1, 2]]) == pytest.approx(6 / 30)


# Learner processes.


@dataclass(frozen=True)
class Doubled:
    doubled: torch.Tensor


def minibatch_of(batch: TokenBatch, parts: list[list[int]]) -> TokenMinibatch[Doubled]:
    """Its tensors tell which token is which."""
    identity = torch.arange(batch.num_sampled, dtype=torch.float32)
    return TokenMinibatch(batch, identity, identity, Doubled(2 * identity), parts)


@unhurried
@given(seeds, st.integers(5, 40), st.integers(1, 6))
def test_the_parts_of_all_processes_together_are_the_minibatch(seed: int, budget: int, num_processes: int) -> None:
    batch, samples = experience(seed, num_groups=4)
    chosen = [i for i in range(len(samples)) if i % 5 != 3]
    num_processes = min(num_processes, len(chosen))
    minibatch = minibatch_of(batch, batch.micro_batches(chosen, budget))
    seen: list[int] = []
    for rank in range(num_processes):
        parts = list(minibatch.shards(rank, num_processes))
        assert parts, "a process without a part would have no loss"
        for part in parts:
            tokens = part.weights.long()
            seen += tokens.tolist()
            torch.testing.assert_close(part.targets.doubled, 2 * part.weights)
            assert torch.equal(part.rows.targets, batch.token_ids[batch.sampled[tokens]])
            assert torch.equal(part.tokens.behaviour_logprobs, batch.tokens.behaviour_logprobs[tokens])
            assert torch.equal(part.policy_lags, batch.policy_lags[tokens])
    wanted = set(chosen)
    assert sorted(seen) == [k for k, i in enumerate(batch.sequence.tolist()) if i in wanted]


@unhurried
@given(seeds)
def test_a_parts_samples_are_numbered_in_the_order_of_its_rows(seed: int) -> None:
    batch, samples = experience(seed, num_groups=4)
    for part in minibatch_of(batch, batch.micro_batches(range(len(samples)), 40)).shards(0, 1):
        assert torch.equal(part.sequence, part.rows.predictors // part.rows.token_ids.shape[1])


@unhurried
@given(seeds, st.integers(1, 40), st.integers(1, 6))
def test_all_processes_make_equally_many_passes_some_of_them_over_nothing(
    seed: int, budget: int, num_processes: int
) -> None:
    """Sharded parameters are gathered in every pass, by all processes together."""
    batch, samples = experience(seed, num_groups=4)
    num_processes = min(num_processes, len(samples))
    minibatch = minibatch_of(batch, batch.micro_batches(range(len(samples)), budget))
    parts = [list(minibatch.shards(rank, num_processes)) for rank in range(num_processes)]
    passes: list[list[TokenRows]] = [[] for _ in range(num_processes)]
    for rank, seen in enumerate(passes):

        def evaluate(rows: TokenRows, seen: list[TokenRows] = seen) -> Tensor:
            seen.append(rows)
            return token_and_its_predictor(rows)

        each_token(batch, evaluate, token_budget=budget, rank=rank, num_processes=num_processes)
    for made in (parts, passes):
        assert len({len(of_one) for of_one in made}) == 1
    empty = [part for of_one in parts for part in of_one if not len(part.weights)]
    assert len(empty) < num_processes
    for part in empty:
        assert part.rows.token_ids.shape == (1, 1) and not len(part.rows.targets)
        assert all(not len(tensor) for tensor in (part.targets.doubled, part.sequence, part.tokens.behaviour_logprobs))


def test_more_processes_than_micro_batches_halve_the_largest() -> None:
    batch = batch_of_sizes([4] * 5)
    minibatch = minibatch_of(batch, [[0, 1, 2, 3, 4]])
    rows = [[len(part.rows.token_ids) for part in minibatch.shards(rank, 4)] for rank in range(4)]
    assert sorted(rows) == [[1], [1], [1], [2]]


def test_of_more_processes_than_samples_the_last_passes_over_padding_alone() -> None:
    minibatch = minibatch_of(batch_of_sizes([4, 4]), [[0, 1]])
    (first,), (second,), (last,) = (list(minibatch.shards(rank, 3)) for rank in range(3))
    assert first.num_samples == second.num_samples == 1 and last.num_samples == 0
    assert last.rows.token_ids.shape == (1, 1) and not len(last.rows.targets) and not len(last.weights)


def token_and_its_predictor(rows: TokenRows) -> Tensor:
    """A number that tells every sampled token from others, and has a gradient."""
    last = rows.token_ids.flatten()[rows.predictors]
    result: Tensor = (1000.0 * rows.targets + last) * torch.ones((), requires_grad=True)
    return result


@unhurried
@given(seeds, st.integers(1, 40), st.integers(1, 6))
def test_what_processes_evaluate_of_each_token_adds_up_to_the_whole(seed: int, budget: int, num_processes: int) -> None:
    batch, samples = experience(seed)
    shares = [
        each_token(batch, token_and_its_predictor, token_budget=budget, rank=rank, num_processes=num_processes)
        for rank in range(num_processes)
    ]
    expected = [1000.0 * samples[i].tokens[t] + samples[i].tokens[t - 1] for i, t in sampled_tokens(samples)]
    # Each token is one process's alone: the others leave a zero. 0 is also a value, of a token 0 after a token 0.
    assert torch.equal(torch.stack(shares).sum(0), torch.tensor(expected))
    assert int(torch.stack(shares).ne(0).sum(0).max()) <= 1
    assert not any(share.requires_grad for share in shares)
