"""Advantages of whole samples from the rewards of their group, and of tokens from rewards and values: pure functions.

Per sample: rewards float [N] and group int64 [N], numbers 0..P-1, of any sizes and in any order. Per token: flat [S],
sample after sample, `lengths` int64 [N] saying how many tokens each sample has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rollcall.learners.maths.losses import normalise_advantages
from rollcall.learners.maths.returns import linear_recurrence


def group_relative(*, rewards: Tensor, group: Tensor, normalise_std: bool, epsilon: float = 1e-6) -> Tensor:
    """[N]: (r - mean of the group), over (its deviation + epsilon) if normalise_std (GRPO, Shao et al., 2024,
    arXiv:2402.03300; without the deviation: Dr. GRPO, arXiv:2503.20783).

    The deviation is the sample's, with n - 1, as published implementations have it. A group whose rewards are all
    equal, one of a single sample among them, has advantages of exactly 0: no rounding error is blown up.

    Raises:
      ValueError: when the shapes differ.
    """
    _check_groups(rewards, group)
    counts = _group_sums(torch.ones_like(rewards), group)
    centred = rewards - (_group_sums(rewards, group) / counts)[group]
    centred = centred.masked_fill(is_degenerate(rewards=rewards, group=group), 0.0)
    if not normalise_std:
        return centred
    variance = _group_sums(centred.square(), group) / (counts - 1.0).clamp(min=1.0)
    return centred / (variance.sqrt() + epsilon)[group]


def leave_one_out(*, rewards: Tensor, group: Tensor) -> Tensor:
    """[N]: r - mean of the other samples' rewards in the group (RLOO, Ahmadian et al., 2024, arXiv:2402.14740).

    A sample alone in its group has no baseline and nothing to be compared with: its advantage is 0.

    Raises:
      ValueError: when the shapes differ.
    """
    _check_groups(rewards, group)
    counts = _group_sums(torch.ones_like(rewards), group)[group]
    others = (_group_sums(rewards, group)[group] - rewards) / (counts - 1.0).clamp(min=1.0)
    return (rewards - others).masked_fill(is_degenerate(rewards=rewards, group=group), 0.0)


def is_degenerate(*, rewards: Tensor, group: Tensor) -> Tensor:
    """bool [N]: the sample's group has one reward only, so that nothing can be learnt from comparing its samples.

    Raises:
      ValueError: when the shapes differ.
    """
    _check_groups(rewards, group)
    empty = rewards.new_zeros(_num_groups(group))
    highest = empty.scatter_reduce(0, group, rewards, "amax", include_self=False)
    lowest = empty.scatter_reduce(0, group, rewards, "amin", include_self=False)
    return (highest == lowest)[group]


def whiten(*, values: Tensor, mask: Tensor | None = None, epsilon: float = 1e-8) -> Tensor:
    """[S]: (x - mean) / (deviation + epsilon), moments over all tokens of the batch where mask is 1: the global
    normalisation of REINFORCE++ (Hu et al., 2025, arXiv:2501.03262).

    The moments are computed in float64: in float32 equal values would be whitened to rounding errors.
    """
    counted = torch.ones_like(values) if mask is None else mask
    return normalise_advantages(advantages=values.double(), mask=counted.double(), epsilon=epsilon).to(values.dtype)


def soft_overlong_penalty(*, lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    """[N], in [-1, 0]: 0 up to max_length - buffer tokens, then linearly down to -1 at max_length (DAPO, Yu et al.,
    2025, arXiv:2503.14476, eq. 13). To be added to the rewards.

    Raises:
      ValueError: when buffer is not in 1..max_length.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer={buffer}: must be at least 1 and at most max_length={max_length}")
    return ((max_length - buffer - lengths).to(torch.float32) / buffer).clamp(-1.0, 0.0)


def rewards_to_tokens(*, rewards: Tensor, lengths: Tensor) -> Tensor:
    """[S]: each sample's reward at its last token, 0 elsewhere. The reward follows the action of that token.

    Raises:
      ValueError: when the shapes differ or a length is not above 0.
    """
    if rewards.shape != lengths.shape:
        raise ValueError(f"rewards has shape {list(rewards.shape)}, lengths has {list(lengths.shape)}")
    _check_lengths(lengths)
    ends = lengths.cumsum(0)
    tokens = rewards.new_zeros(int(ends[-1]))
    tokens[ends - 1] = rewards
    return tokens


def token_gae(
    *, rewards: Tensor, values: Tensor, lengths: Tensor, discount: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns [S] by generalised advantage estimation (Schulman et al., 2016, arXiv:1506.02438), each
    sample by itself; its last token is terminal, and nothing is bootstrapped from behind it.

    rewards[t] follows the action of token t; values[t] is of the state before it. Returns are advantages + values.
    With values 0 and lam 1 both are the rewards to go.

    Raises:
      ValueError: when rewards and values have not sum(lengths) tokens, or a length is not above 0.
    """
    _check_lengths(lengths)
    num_tokens = int(lengths.sum())
    for name, tensor in (("rewards", rewards), ("values", values)):
        if tensor.shape != (num_tokens,):
            raise ValueError(f"{name} has shape {list(tensor.shape)}, the lengths add up to {num_tokens} tokens")
    column = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    row = torch.arange(num_tokens, device=lengths.device) - (lengths.cumsum(0) - lengths)[column]
    # A column for each sample. One row of zeros behind it is the value of its end; padding adds nothing to what stands
    # before it.
    padded = values.new_zeros(int(lengths.max()) + 1, len(lengths))
    padded[row, column] = values
    deltas = rewards.new_zeros(int(lengths.max()), len(lengths))
    deltas[row, column] = rewards + discount * padded[row + 1, column] - values
    advantages = linear_recurrence(increments=deltas, decays=discount * lam)[row, column]
    return advantages, advantages + values


def _num_groups(group: Tensor) -> int:
    return int(group.max()) + 1


def _group_sums(x: Tensor, group: Tensor) -> Tensor:
    """Of each group."""
    return x.new_zeros(_num_groups(group)).index_add(0, group, x)


def _check_groups(rewards: Tensor, group: Tensor) -> None:
    if rewards.dim() != 1 or rewards.shape != group.shape or not len(rewards):
        raise ValueError(f"group has shape {list(group.shape)}, rewards {list(rewards.shape)}: both are [N], N above 0")


def _check_lengths(lengths: Tensor) -> None:
    if lengths.dim() != 1 or not len(lengths) or bool((lengths <= 0).any()):
        raise ValueError(f"lengths={lengths.tolist()}: needs at least one sample, each of at least one token")
