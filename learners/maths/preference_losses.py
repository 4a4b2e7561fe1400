"""The mathematics of learning from comparisons, as pure functions: likelihoods of what was preferred, losses of the
direct methods, weights of groups.

`differences` are always better minus worse: of rewards, or of log-ratios to a reference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_nll(
    *, differences: Tensor, margins: Tensor | None = None, label_smoothing: float = 0.0, noise: float = 0.0
) -> Tensor:
    """-log P(the better one is preferred), with P = sigmoid(difference - margin) (Bradley and Terry, 1952).

    With margins, the loss of Llama 2's reward models (Touvron et al., 2023, arXiv:2307.09288, eq. 2): a pair that was
    judged clearly better must lie further apart. `label_smoothing` e expects a label to be wrong with probability e,
    and takes the mean of both labels' losses. `noise` n expects a rater to answer at random with probability n,
    whatever the difference: P becomes (1 - n) * P + n / 2, which bounds the loss (Christiano et al., 2017,
    arXiv:1706.03741, section 2.2.3, with n = 0.1).

    Args:
      differences: [..., P]: r(better) - r(worse).
      margins: [P], in units of the reward; None: 0.

    Returns:
      [..., P]

    Raises:
      ValueError: when label_smoothing is not in [0, 0.5), or noise not in [0, 1).
    """
    _check_rates(label_smoothing=label_smoothing, noise=noise)
    shifted = differences if margins is None else differences - margins
    loss = -_answered(shifted, noise)
    if label_smoothing:
        loss = (1.0 - label_smoothing) * loss - label_smoothing * _answered(-shifted, noise)
    return loss


def soft_labelled(*, preferred: Tensor, other: Tensor, probabilities: Tensor) -> Tensor:
    """[..., P]: the expected loss of pairs whose label is a probability p: p times the loss of the answer, 1 - p times
    that of the opposite one. Of Bradley and Terry's likelihood the cross-entropy with the label (p, 1 - p), least where
    the model says p (Lee et al., 2023, arXiv:2309.00267, section 2.1); of DPO's loss conservative DPO, pair by pair.

    Args:
      preferred: [..., P], the losses where the better one is preferred.
      other: [..., P], where the worse one is.
      probabilities: [P], that the better one is better.
    """
    return probabilities * preferred + (1.0 - probabilities) * other


def half_tie_nll(*, differences: Tensor, noise: float = 0.0) -> Tensor:
    """A tie as half a vote for either: the cross-entropy with the label (1/2, 1/2) (Christiano et al., 2017,
    arXiv:1706.03741, section 2.2.3). [..., P] -> [..., P], least where the rewards are equal."""
    _check_rates(label_smoothing=0.0, noise=noise)
    return -0.5 * (_answered(differences, noise) + _answered(-differences, noise))


def rao_kupper_nll(*, differences: Tensor, tied: Tensor, threshold: float, margins: Tensor | None = None) -> Tensor:
    """Ties as an outcome of their own (Rao and Kupper, 1967): raters do not see a difference below the threshold t.

    P(better) = sigmoid(d - t), and P(tie) = (exp(2 t) - 1) * sigmoid(d - t) * sigmoid(-d - t); with P(worse) they sum
    to 1. Larger t, more ties.

    Args:
      differences: [..., P]; of a tied pair the order does not matter.
      tied: bool [P].
      margins: [P], subtracted from the differences of pairs that are not tied; None: 0.

    Raises:
      ValueError: when the threshold is not above 0.
    """
    if not threshold > 0:
        raise ValueError(f"threshold={threshold}: must be above 0, or no pair can be tied")
    shifted = differences if margins is None else differences - margins
    won = logsigmoid(shifted - threshold)
    drawn = logsigmoid(differences - threshold) + logsigmoid(-differences - threshold)
    drawn = drawn + math.log(math.expm1(2.0 * threshold))
    return -torch.where(tied, drawn, won)


def sums_by_owner(*, values: Tensor, owner: Tensor, num_owners: int) -> Tensor:
    """[..., N]: sums of values [..., R] over those that belong to each of N owners; owner is int64 [R].

    The return of a segment is the sum of its steps' rewards (Christiano et al., 2017, eq. 1); the log-probability of a
    response is the sum of its tokens'.
    """
    sums = values.new_zeros(*values.shape[:-1], num_owners)
    return sums.index_add(-1, owner, values)


def dpo_loss(*, differences: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta * h), h = log pi(y_w)/ref(y_w) - log pi(y_l)/ref(y_l) (DPO, Rafailov et al., 2023,
    arXiv:2305.18290, eq. 7): Bradley-Terry with the implicit reward beta * log pi / ref.

    With label_smoothing e, conservative DPO (Mitchell, 2023): labels are wrong with probability e, and h converges to
    log((1 - e) / e) / beta in place of infinity.

    Args:
      differences: [P]: h.

    Raises:
      ValueError: when beta is not above 0 or label_smoothing not in [0, 0.5).
    """
    if not beta > 0:
        raise ValueError(f"beta={beta}: must be above 0")
    return bradley_terry_nll(differences=beta * differences, label_smoothing=label_smoothing)


def ipo_loss(*, differences: Tensor, tau: float) -> Tensor:
    """(h - 1 / (2 tau))^2 with DPO's h (IPO, Azar et al., 2023, arXiv:2310.12036, eq. 17): a pair that is always
    preferred the same way pulls h to a finite place, not to infinity.

    Raises:
      ValueError: when tau is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"tau={tau}: must be above 0")
    return (differences - 0.5 / tau).square()


def kto_baseline(*, mismatched: Tensor) -> Tensor:
    """[]: z, an estimate of KL(pi || ref) that is never below 0: the mean of log pi / ref of responses after prompts
    that they do not belong to (KTO, Ethayarajh et al., 2024, arXiv:2402.01306, section 4.1). No gradient goes through
    it. mismatched: [P]."""
    return mismatched.detach().mean().clamp(min=0.0)


def kto_loss(
    *,
    log_ratios: Tensor,
    desirable: Tensor,
    baseline: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """[P]: weight * (1 - sigmoid(beta * (r - z))) of desirable responses, weight * (1 - sigmoid(beta * (z - r))) of
    undesirable ones (KTO, Ethayarajh et al., 2024, arXiv:2402.01306, eq. 8).

    Args:
      log_ratios: [P], r = log pi / ref of whole responses.
      desirable: bool [P].
      baseline: [], z.

    Raises:
      ValueError: when beta or a weight is not above 0.
    """
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    for name, value in {"beta": beta, **weights}.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: must be above 0")
    gains = beta * (log_ratios - baseline)
    lost = (-torch.where(desirable, gains, -gains)).sigmoid()  # 1 - sigmoid(x) = sigmoid(-x)
    return torch.where(desirable, desirable_weight * lost, undesirable_weight * lost)


def importance_weights(*, group: Tensor, group_sizes: Tensor) -> Tensor:
    """[P]: N / N_g of each pair's group, which makes a mean over pairs drawn from all N an estimate of the sum over
    groups of their own means (Ramesh et al., 2024, arXiv:2405.20304). group: int64 [P]; group_sizes: [G]."""
    return (group_sizes.sum() / group_sizes)[group]


def exponentiated_gradient(
    *, group_weights: Tensor, losses: Tensor, group: Tensor, group_sizes: Tensor, sample_weights: Tensor, step: float
) -> Tensor:
    """[G]: the group weights alpha after one step of mirror ascent on the simplex: alpha_g is multiplied by
    exp(step * loss_g) and all are normalised again (Ramesh et al., 2024, arXiv:2405.20304, algorithm 1, lines 6-7).

    The paper draws one pair of group g and takes loss_g = N / N_g * its loss, and 0 for all other groups; a batch takes
    the mean of that over its pairs. Its expectation is the mean loss of group g, however rare the group is.

    Args:
      group_weights: [G], positive, sum 1.
      losses: [P].
      group: int64 [P].
      group_sizes: [G], pairs of each group in the whole training set.
      sample_weights: [P], what each pair weighs in the batch's mean; they sum to 1.

    Raises:
      ValueError: when a group is empty, or the step is negative.
    """
    if step < 0:
        raise ValueError(f"step={step}: must be 0 or more")
    if bool((group_sizes <= 0).any()):
        raise ValueError(f"group_sizes={group_sizes.tolist()}: every group needs a pair")
    weighed = sample_weights * importance_weights(group=group, group_sizes=group_sizes) * losses
    estimates = sums_by_owner(values=weighed, owner=group, num_owners=len(group_weights))
    return (group_weights.log() + step * estimates).softmax(-1)


def _answered(differences: Tensor, noise: float) -> Tensor:
    """log((1 - noise) * sigmoid(differences) + noise / 2)"""
    logprobs = logsigmoid(differences)
    if not noise:
        return logprobs
    return torch.logaddexp(logprobs + math.log1p(-noise), torch.full_like(logprobs, math.log(noise) - math.log(2.0)))


def _check_rates(*, label_smoothing: float, noise: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 0.5): at 0.5 labels say nothing")
    if not 0 <= noise < 1:
        raise ValueError(f"noise={noise}: must be in [0, 1): at 1 every answer is random")
