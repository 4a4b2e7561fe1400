"""What losses of language models have of their own, as pure functions over flat sampled tokens, [K]: one term per
token, not yet summed up.

A loss is sum(weights * terms). The weights (`aggregation_weights`) are made for a whole minibatch, so the losses and
gradients of its parts add up to those of the whole, however it is divided into micro-batches and among processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rollcall.learners.maths.choices import Aggregation
from rollcall.learners.maths.losses import same_shape


def aggregation_weights(*, lengths: Tensor, mode: Aggregation, fixed_length: int | None = None) -> Tensor:
    """[N]: what one token of each sample weighs in the loss of these N samples.

    token_mean: 1 / sum(lengths), every token alike (DAPO, Yu et al., 2025, arXiv:2503.14476). sequence_mean:
    1 / (N * length), every sample alike, so that a long one's tokens weigh less (GRPO, arXiv:2402.03300).
    fixed_length: 1 / (N * fixed_length), the same whatever the lengths are (Dr. GRPO, Liu et al., 2025,
    arXiv:2503.20783).

    Args:
      lengths: int64 [N], tokens of each sample, all above 0.

    Raises:
      ValueError: when a length is not above 0, the mode is unknown, or fixed_length is missing where it is needed.
    """
    if lengths.dim() != 1 or not len(lengths) or bool((lengths <= 0).any()):
        raise ValueError(f"lengths={lengths.tolist()}: needs at least one sample, each of at least one token")
    count = lengths.to(torch.float32)
    if mode == "token_mean":
        return torch.ones_like(count) / count.sum()
    if mode == "sequence_mean":
        return 1.0 / (len(lengths) * count)
    if mode != "fixed_length":
        raise ValueError(f"mode={mode!r}: is token_mean, sequence_mean or fixed_length")
    if fixed_length is None or fixed_length <= 0:
        raise ValueError(f"fixed_length={fixed_length}: mode='fixed_length' divides by it, so it must be above 0")
    return torch.full_like(count, 1.0 / (len(lengths) * fixed_length))


def sequence_log_ratios(
    *, logprobs: Tensor, anchor_logprobs: Tensor, sequence: Tensor, num_sequences: int, mask: Tensor | None = None
) -> Tensor:
    """[K]: the mean of log(pi / anchor) over the tokens of a token's sample, the same for all of them: the logarithm
    of the length-normalised sequence ratio (GSPO, Zheng et al., 2025, arXiv:2507.18071). Differentiable.

    Args:
      sequence: int64 [K], the sample of each token, in 0..num_sequences-1.
      mask: [K], 1 for the tokens that the mean is over; None for all. With none left, a sample's mean is 0.

    Raises:
      ValueError: when shapes differ.
    """
    same_shape(logprobs=logprobs, anchor_logprobs=anchor_logprobs, sequence=sequence)
    log_ratios = logprobs - anchor_logprobs
    counted = torch.ones_like(log_ratios) if mask is None else mask.to(log_ratios.dtype)
    zeros = log_ratios.new_zeros(num_sequences)
    totals = zeros.index_add(0, sequence, log_ratios * counted)
    counts = zeros.index_add(0, sequence, counted)
    return (totals / counts.clamp(min=1.0))[sequence]


def cispo_loss(
    *, logprobs: Tensor, anchor_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """-stop_gradient(clamp(pi / anchor, 1 - clip_low, 1 + clip_high)) * A * log pi (MiniMax-M1, arXiv:2506.13585).

    The importance weight is clipped, not the update: every token keeps a gradient.

    Returns:
      The loss [K], and a mask [K], True where the weight is a bound.

    Raises:
      ValueError: when shapes differ.
    """
    same_shape(logprobs=logprobs, anchor_logprobs=anchor_logprobs, advantages=advantages)
    ratio = (logprobs.detach() - anchor_logprobs).exp()
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -weight * advantages * logprobs, weight != ratio


def truncated_importance_weights(*, proximal_logprobs: Tensor, behaviour_logprobs: Tensor, cap: float) -> Tensor:
    """[K]: min(pi_proximal / behaviour, cap), without gradient. cap = inf is exact importance weighting.

    Raises:
      ValueError: when shapes differ, or cap is not above 0.
    """
    same_shape(proximal_logprobs=proximal_logprobs, behaviour_logprobs=behaviour_logprobs)
    if not cap > 0:
        raise ValueError(f"cap={cap}: must be above 0")
    return (proximal_logprobs - behaviour_logprobs).detach().exp().clamp(max=cap)


def band_mask(*, log_ratio: Tensor, low: float, high: float) -> Tensor:
    """[K]: 1 where low <= exp(log_ratio) <= high, else 0. Without gradient.

    Raises:
      ValueError: when low is above high.
    """
    if low > high:
        raise ValueError(f"low={low}, high={high}: the band is empty")
    ratio = log_ratio.detach().exp()
    return ((ratio >= low) & (ratio <= high)).to(log_ratio.dtype)
