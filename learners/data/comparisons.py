"""Comparisons as a learner meets them: candidates as arrays, and who was preferred to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.seeds import derive_seed


@dataclass(frozen=True)
class TokenSequence:
    """A response after its prompt, as it is given to a model."""

    token_ids: Array  # int32 [n]: prompt and response
    num_prompt: int  # how many of them are the prompt's: fewer than n; for a policy at least 1


@dataclass(frozen=True)
class Steps:
    """A stretch of one episode."""

    observations: Array  # float32 [T, D], flattened
    actions: Array  # float32 [T, A]: as they are, or [T, 1] numbers of discrete actions


Candidate = TypeVar("Candidate", TokenSequence, Steps)


@dataclass(frozen=True)
class RankedCandidates(Generic[Candidate]):
    """K candidates and what was said of them."""

    candidates: tuple[Candidate, ...]
    ranks: tuple[int, ...]  # of each: 0 is best, equal ranks are a tie
    margin: float = 0.0  # by how much the better one is better, in units of the reward
    group: int = 0  # who judged: 0, 1, ...
    probability: float = 1.0  # of a pair: that the better one is better, where the label is soft
    draws: tuple[int, ...] = (1,)  # of each ensemble member: how often its bootstrap sample holds this comparison


def bootstrapped(
    comparisons: Sequence[RankedCandidates[Candidate]], *, members: int, seed: int
) -> list[RankedCandidates[Candidate]]:
    """The comparisons with their `draws`: each member's sample is as many of them as there are, drawn with replacement
    (Christiano et al., 2017, arXiv:1706.03741, section 2.2.3)."""
    size = len(comparisons)
    draws = np.stack(
        [
            np.bincount(
                np.random.default_rng(derive_seed(seed, "bootstrap", m)).integers(size, size=size), minlength=size
            )
            for m in range(members)
        ]
    )
    return [replace(item, draws=tuple(draws[:, i].tolist())) for i, item in enumerate(comparisons)]
