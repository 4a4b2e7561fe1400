"""Best-of-n as mathematics: how good the best of n samples is, and how far choosing it leads from what was sampled.
Pure functions over tensors; scores may come from anywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def expected_maximum(*, scores: Tensor, n: int) -> Tensor:
    """[...]: what the best of n samples scores on average, estimated without bias from N >= n samples of each prompt:
    the mean of the maximum over all (N choose n) subsets (Nakano et al., 2021, arXiv:2112.09332, appendix I).

    The i-th smallest of N is the largest of (i - 1 choose n - 1) subsets, so that no subset is looked at.

    Args:
      scores: [..., N].

    Raises:
      ValueError: when n is not in [1, N].
    """
    size = scores.shape[-1]
    if not 1 <= n <= size:
        raise ValueError(f"n={n}: must be 1 or more, and at most the {size} scores there are")
    ordered = scores.double().sort(-1).values
    places = torch.arange(n, size + 1, dtype=torch.float64, device=scores.device)  # i, of those that can be largest
    log_subsets = _log_choose(places - 1, n - 1) - _log_choose(torch.tensor(float(size), dtype=torch.float64), n)
    return (ordered[..., n - 1 :] * log_subsets.exp().to(ordered.device)).sum(-1)


def best_of_n_probabilities(*, probabilities: Tensor, scores: Tensor, n: int) -> Tensor:
    """[K]: how likely each of K outcomes is the best of n independent ones, where equal scores are drawn among by lot.

    With F(s) the probability of a score of at most s: a level of the score wins with F(s)^n - F(s-)^n, which its
    outcomes share as they share it in one draw (Beirami et al., 2024, arXiv:2401.01879, section 2, for scores that all
    differ).

    Args:
      probabilities: [K], of one draw; they sum to 1.
      scores: [K].

    Raises:
      ValueError: when n is not 1 or more, or the probabilities do not sum to 1.
    """
    _check_count(n)
    total = float(probabilities.sum())
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ValueError(f"probabilities sum to {total}: must sum to 1")
    drawn = probabilities.double()
    levels, level = torch.unique(scores, return_inverse=True)
    mass = drawn.new_zeros(len(levels)).index_add(0, level, drawn)
    below = torch.cat([mass.new_zeros(1), mass.cumsum(0)[:-1]])
    wins = (below + mass).clamp(max=1.0) ** n - below**n
    share = torch.where(mass > 0, wins / mass.clamp(min=torch.finfo(mass.dtype).tiny), torch.zeros_like(mass))
    return drawn * share[level]


def best_of_n_kl(*, probabilities: Tensor, scores: Tensor, n: int) -> Tensor:
    """[]: KL(best-of-n || one draw) of K outcomes, in nats, exactly. Arguments as best_of_n_probabilities."""
    best = best_of_n_probabilities(probabilities=probabilities, scores=scores, n=n)
    possible = best > 0
    return (best[possible] * (best[possible] / probabilities.double()[possible]).log()).sum()


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n - 1) / n, in nats: no best-of-n is further from what was sampled.

    Stiennon et al. (2020, arXiv:2009.01325) and many after them take it for the divergence itself, which it is where no
    two outcomes score alike and none has much probability; Beirami et al. (2024, arXiv:2401.01879, section 3) prove
    that in general it is an upper bound.

    Raises:
      ValueError: when n is not 1 or more.
    """
    _check_count(n)
    return math.log(n) - (n - 1) / n


def _log_choose(n: Tensor, k: int) -> Tensor:
    """log (n choose k), of n >= k."""
    return torch.lgamma(n + 1) - math.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _check_count(n: int) -> None:
    if n < 1:
        raise ValueError(f"n={n}: the best of how many? must be 1 or more")
