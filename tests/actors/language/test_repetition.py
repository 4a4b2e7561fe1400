"""How far a completion repeats itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcall.actors.language.repetition import digest, repeated_ngrams


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ([], 0.0),
        ([1, 2, 3], 0.0),
        ([1, 2, 3, 4], 0.0),
        ([7, 7, 7, 7, 7], 0.5),  # two 4-grams, one of them new
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),  # 1234 2341 3412 4123 1234
        (list(range(100)), 0.0),
    ],
)
def test_the_share_of_4_grams_that_were_there_before(tokens: list[int], share: float) -> None:
    assert repeated_ngrams(tokens) == pytest.approx(share)


@given(st.lists(st.integers(0, 5), max_size=60))
def test_it_is_what_counting_each_against_those_before_it_gives(tokens: list[int]) -> None:
    ngrams = [tokens[i : i + 4] for i in range(len(tokens) - 3)]
    again = sum(ngram in ngrams[:i] for i, ngram in enumerate(ngrams))
    assert repeated_ngrams(tokens) == pytest.approx(again / len(ngrams) if ngrams else 0.0)


@given(st.lists(st.integers(0, 3), max_size=4), st.lists(st.integers(0, 3), max_size=4))
def test_two_completions_have_one_digest_where_they_are_the_same(one: list[int], other: list[int]) -> None:
    assert (digest(one) == digest(other)) == (one == other)
