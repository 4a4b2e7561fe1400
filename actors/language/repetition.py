"""How far a completion repeats itself, and what it is known by among others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

NGRAM = 4  # tokens


def repeated_ngrams(token_ids: Sequence[int]) -> float:
    """The share of a completion's 4-grams that stand in it before already (seq-rep-4 of Welleck et al., 2019,
    arXiv:1908.04319); 0 where it has fewer than two."""
    ngrams = [tuple(token_ids[begin : begin + NGRAM]) for begin in range(len(token_ids) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def digest(token_ids: Sequence[int]) -> str:
    """Of the tokens: two completions have one where they are the same."""
    return hashlib.blake2b(np.asarray(token_ids, np.int64).tobytes(), digest_size=8).hexdigest()
