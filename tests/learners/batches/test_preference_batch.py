"""Comparisons in batches: pairs of rankings, parts that add up to the whole, padding that is not seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollcall.learners.batches.preference_batch import PreferenceMinibatch, collate_comparisons
from rollcall.learners.data.comparisons import RankedCandidates, Steps, TokenSequence, bootstrapped
from rollcall.learners.data.source import ShuffledSource


def sequence(*tokens: int, num_prompt: int = 1) -> TokenSequence:
    return TokenSequence(np.array(tokens, np.int32), num_prompt)


def ranking(*ranks: int, first: int = 10) -> RankedCandidates[TokenSequence]:
    return RankedCandidates(tuple(sequence(1, first + i, *range(2, 2 + i)) for i in range(len(ranks))), ranks)


def test_a_ranking_of_k_gives_k_choose_2_pairs_that_weigh_as_much_as_one_pair() -> None:
    batch = collate_comparisons([ranking(2, 0, 1), ranking(0, 1)])
    pairs = batch.pairs
    found = set(zip(pairs.better.tolist(), pairs.worse.tolist(), strict=True))
    assert found == {(1, 0), (2, 0), (1, 2), (3, 4)}
    assert pairs.weights.tolist() == [pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])]
    assert not pairs.tied.any()


def test_equal_ranks_are_a_tie_and_the_others_are_not() -> None:
    pairs = collate_comparisons([ranking(0, 1, 1)]).pairs
    tied = {(b, w): bool(t) for b, w, t in zip(pairs.better.tolist(), pairs.worse.tolist(), pairs.tied, strict=True)}
    assert tied == {(0, 1): False, (0, 2): False, (1, 2): True}


@settings(deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=1, max_size=12),
    budget=st.integers(1, 200),
    processes=st.integers(1, 3),
)
def test_parts_hold_every_comparison_once_with_its_own_pairs(
    lengths: list[tuple[int, int]], budget: int, processes: int
) -> None:
    items = [
        RankedCandidates((sequence(*[1] * a), sequence(*[2] * b)), (0, 1), margin=float(c))
        for c, (a, b) in enumerate(lengths)
    ]
    batch = collate_comparisons(items)
    whole = PreferenceMinibatch(batch, batch.parts(budget))
    shares = [list(whole.shards(rank, processes)) for rank in range(processes)]
    # A model in pieces is gathered for each pass, by all processes together: they make equally many.
    assert len({len(share) for share in shares}) == 1 and shares[0]
    parts = [part for share in shares for part in share]
    assert sorted(i for part in parts for i in part.chosen) == list(range(2 * len(items)))
    assert sorted(i for part in parts for i in part.pair_indices.tolist()) == list(range(len(items)))
    values = torch.arange(2.0 * len(items))
    for part in parts:
        own = part.pairs.differences(values[list(part.chosen)])
        torch.testing.assert_close(own, batch.pairs.differences(values)[part.pair_indices])
        torch.testing.assert_close(part.pairs.margins, batch.pairs.margins[part.pair_indices])
        rows = len(part.chosen) * max((batch.candidates.sizes[i] for i in part.chosen), default=0)
        assert rows <= budget or len(part.chosen) == 2
        assert part.response_rows()[0].targets.shape == part.response_rows()[1].shape


def test_a_policys_rows_are_the_responses_tokens_each_predicted_by_the_one_before() -> None:
    items = [RankedCandidates((sequence(5, 6, 7, 8, num_prompt=2), sequence(5, 6, 9, num_prompt=2)), (0, 1))]
    rows, owner = collate_comparisons(items).part([0]).response_rows()
    assert rows.targets.tolist() == [7, 8, 9]
    assert owner.tolist() == [0, 0, 1]
    assert rows.token_ids.flatten()[rows.predictors].tolist() == [6, 7, 6]
    assert rows.token_ids.tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]]


def test_segments_steps_are_told_apart_whatever_part_they_are_in() -> None:
    def steps(length: int, value: float) -> Steps:
        return Steps(np.full((length, 2), value, np.float32), np.full((length, 1), value, np.float32))

    items = [RankedCandidates((steps(2, 1), steps(3, 2)), (0, 1)), RankedCandidates((steps(1, 3), steps(4, 4)), (1, 0))]
    batch = collate_comparisons(items)
    inputs, owner = batch.part([1]).reward_inputs()
    assert owner.tolist() == [0, 1, 1, 1, 1]
    assert inputs["observations"][:, 0].tolist() == [3, 4, 4, 4, 4]
    assert inputs["actions"].shape == (5, 1)
    assert batch.part([1]).pairs.better.tolist() == [1]


def test_every_member_has_a_bootstrap_sample_of_its_own_of_the_same_size() -> None:
    drawn = bootstrapped([ranking(0, 1)] * 50, members=3, seed=1)
    counts: Tensor = torch.tensor([item.draws for item in drawn])
    assert counts.sum(0).tolist() == [50, 50, 50]
    assert len({tuple(column) for column in counts.T.tolist()}) == 3
    assert (counts == 0).any()  # of 50 draws, about 18 comparisons are missing
    again = bootstrapped([ranking(0, 1)] * 50, members=3, seed=1)
    assert [item.draws for item in again] == [item.draws for item in drawn]
    weights = collate_comparisons(drawn).pairs.weights
    torch.testing.assert_close(weights.sum(1), torch.ones(3))


def test_a_source_gives_each_comparison_once_a_pass_and_the_same_batch_again() -> None:
    items = [ranking(0, 1, first=20 + i) for i in range(10)]
    source = ShuffledSource(items, batch_size=5, steps=4, seed=3)
    batches = [source.take(step) for step in range(4)]
    assert all(batch is not None for batch in batches)
    first_pass = [*(batches[0] or []), *(batches[1] or [])]
    assert {id(item) for item in first_pass} == {id(item) for item in items}
    assert [id(item) for item in source.take(2) or []] == [id(item) for item in batches[2] or []]
    assert source.take(4) is None


def test_groups_in_turn_fill_a_batch_evenly_and_a_small_groups_comparisons_come_again_sooner() -> None:
    items = [replace(ranking(0, 1, first=20 + i), group=int(i >= 8)) for i in range(10)]
    source = ShuffledSource(items, batch_size=4, steps=4, seed=3, groups=[item.group for item in items])
    met = [item for step in range(4) for item in source.take(step) or []]
    assert [item.group for item in met] == [0, 1] * 8
    counts = Counter(id(item) for item in met)
    assert [counts[id(item)] for item in items] == [1] * 8 + [4] * 2


def test_what_is_no_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one comparison"):
        collate_comparisons([])
    with pytest.raises(ValueError, match=r"ranks \(0,\) of 1 candidates"):
        collate_comparisons([RankedCandidates((sequence(1, 2),), (0,))])
    with pytest.raises(ValueError, match="the response needs one"):
        collate_comparisons([RankedCandidates((sequence(1, 2, num_prompt=2), sequence(1, 2)), (0, 1))])
    with pytest.raises(ValueError, match="no prompt"):
        collate_comparisons([RankedCandidates((sequence(1, 2, num_prompt=0), sequence(1, 2)), (0, 1))]).part(
            [0]
        ).response_rows()
