"""Returns and advantages as pure functions over [T, B] tensors: time first, one env per column."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Advantages(NamedTuple):
    advantages: Tensor  # [T, B]; 0 at a dead step
    returns: Tensor  # [T, B]: advantages + values, what the critic regresses to


def check_shapes(**tensors: Tensor | None) -> None:
    """The first tensor must be [T, B] with T >= 1, and every other that is given must have its shape.

    Raises:
      ValueError: naming the argument that has not.
    """
    first, *others = tensors.items()
    assert first[1] is not None
    shape = first[1].shape
    if len(shape) != 2 or shape[0] == 0:
        raise ValueError(f"{first[0]} has shape {list(shape)}: it must be [T, B] with T >= 1")
    for name, tensor in others:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: it must be {list(shape)}, that of {first[0]}")


def linear_recurrence(*, increments: Tensor, decays: Tensor | float) -> Tensor:
    """x with x[t] = increments[t] + decays[t] * x[t + 1] and x[T] = 0. All [T, B]; a number is the decay of all steps.

    Solved by recursive doubling: log2(T) rounds over whole tensors instead of T rounds over rows, since a dispatched
    operation costs more than the arithmetic on a row. After the round of `reach` s, x[t] covers steps t .. t + 2s - 1.
    Nothing is divided, so decays of zero (the ends of episodes) are exact.
    """
    result, products = increments.clone(), decays.clone() if isinstance(decays, Tensor) else None
    reach, num_steps = 1, increments.shape[0]
    while reach < num_steps:
        # All right sides are whole before anything is written: the slices overlap.
        if products is None:
            arriving = decays**reach * result[reach:]
        else:
            arriving = products[:-reach] * result[reach:]
            products[:-reach] = products[:-reach] * products[reach:]
        result[:-reach] += arriving
        reach *= 2
    return result


def credit_passes(*, terminated: Tensor, truncated: Tensor, mask: Tensor | None) -> Tensor:
    """bool [T, B]: True where step t + 1 goes on with the episode of step t, so that credit may flow back from it.

    False at both kinds of end, at the fragment's last step, at a dead step, and at a step before a dead one.
    """
    passes = (terminated | truncated).logical_not_()
    passes[-1] = False
    if mask is not None:
        passes &= mask
        passes[:-1] &= mask[1:]
    return passes


def one_step_returns(*, rewards: Tensor, next_values: Tensor, terminated: Tensor, discount: float) -> Tensor:
    """r[t] + discount * next_values[t], the latter only where the episode did not terminate. All [T, B]."""
    return torch.add(rewards, next_values.masked_fill(terminated, 0.0), alpha=discount)


def gae(
    *,
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float,
    lam: float,
    mask: Tensor | None = None,
) -> Advantages:
    """Generalised advantage estimation (Schulman et al., 2016, arXiv:1506.02438). All tensors are [T, B].

    A truncated step, and the fragment's last one, bootstraps from next_values (the value before the reset); a
    terminated one does not. No credit crosses an end. terminated, truncated and mask are bool; a step whose mask is
    False is dead: its advantage is 0, and the step before it bootstraps from next_values.

    Raises:
      ValueError: naming the argument whose shape is not [T, B].
    """
    check_shapes(
        rewards=rewards, values=values, next_values=next_values, terminated=terminated, truncated=truncated, mask=mask
    )
    deltas = one_step_returns(rewards=rewards, next_values=next_values, terminated=terminated, discount=discount)
    deltas -= values
    if mask is not None:
        deltas = deltas.masked_fill_(~mask, 0.0)
    passes = credit_passes(terminated=terminated, truncated=truncated, mask=mask)
    advantages = linear_recurrence(increments=deltas, decays=passes.to(deltas.dtype).mul_(discount * lam))
    return Advantages(advantages, advantages + values)


def discounted_returns(
    *,
    rewards: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Reward-to-go: r[t] + discount * r[t+1] + ... up to the end of the episode or of the fragment. All [T, B].

    A truncated step, and the fragment's last one, adds discount * next_values; a terminated one does not. Give zeros
    as next_values where there is no critic. Dead steps (mask False) have 0 and pass nothing on.

    Raises:
      ValueError: naming the argument whose shape is not [T, B].
    """
    check_shapes(rewards=rewards, next_values=next_values, terminated=terminated, truncated=truncated, mask=mask)
    passes = credit_passes(terminated=terminated, truncated=truncated, mask=mask)
    bootstraps = next_values.masked_fill(passes | terminated, 0.0)
    increments = torch.add(rewards, bootstraps, alpha=discount)
    if mask is not None:
        increments = increments.masked_fill_(~mask, 0.0)
    return linear_recurrence(increments=increments, decays=passes.to(increments.dtype).mul_(discount))


def n_step_returns(
    *,
    rewards: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float,
    n: int,
    mask: Tensor | None = None,
) -> Tensor:
    """r[t] + ... + discount^(n-1) * r[t+n-1] + discount^n * V(x[t+n]), where V(x[t+n]) is next_values[t+n-1].

    Stops early, as `discounted_returns` does, at the first end of either kind, at the fragment's last step and before
    a dead step. All tensors are [T, B].

    Raises:
      ValueError: on n < 1, or naming the argument whose shape is not [T, B].
    """
    if n < 1:
        raise ValueError(f"n is {n}: a return has at least 1 step")
    if n >= rewards.shape[0]:
        return discounted_returns(
            rewards=rewards,
            next_values=next_values,
            terminated=terminated,
            truncated=truncated,
            discount=discount,
            mask=mask,
        )
    check_shapes(rewards=rewards, next_values=next_values, terminated=terminated, truncated=truncated, mask=mask)
    passes = credit_passes(terminated=terminated, truncated=truncated, mask=mask)[:-1]
    one_step = one_step_returns(rewards=rewards, next_values=next_values, terminated=terminated, discount=discount)
    if mask is not None:
        one_step = one_step.masked_fill_(~mask, 0.0)
    # The return of k + 1 steps is a reward and then, inside the episode, the return of k steps of the next step.
    returns = one_step.clone()
    for _ in range(n - 1):
        longer = torch.add(rewards[:-1], returns[1:], alpha=discount)
        returns[:-1] = torch.where(passes, longer, one_step[:-1])
    return returns


def episode_starts_within(*, terminated: Tensor, truncated: Tensor, mask: Tensor) -> Tensor:
    """bool [T, B]: True at the first valid step of every episode's part that lies in these T steps."""
    starts = mask.clone()
    starts[1:] &= (terminated | truncated)[:-1] | ~mask[:-1]
    return starts


def whole_episode_returns(*, returns: Tensor, terminated: Tensor, truncated: Tensor, mask: Tensor) -> Tensor:
    """Gives every step the reward-to-go of its episode's first step: the return of the whole episode. All [T, B].

    `returns` are those of `discounted_returns`. Dead steps have 0.

    Raises:
      ValueError: naming the argument whose shape is not [T, B].
    """
    check_shapes(returns=returns, terminated=terminated, truncated=truncated, mask=mask)
    starts = episode_starts_within(terminated=terminated, truncated=truncated, mask=mask)
    times = torch.arange(len(starts), device=starts.device).unsqueeze(1)
    start_times = (times * starts).cummax(dim=0).values
    return returns.gather(0, start_times).masked_fill(~mask, 0.0)


def endless_gae(
    *, rewards: Tensor, values: Tensor, last_values: Tensor, discount: float, lam: float, mask: Tensor
) -> Advantages:
    """GAE of a stream that no episode's end interrupts: credit crosses it into the next episode (Burda et al., 2018,
    arXiv:1810.12894, for intrinsic rewards). All [T, B], but last_values [B], the value after the last step.

    At a dead step (mask False) no time passes: its advantage is 0, and the step before it is followed by the one after.

    Raises:
      ValueError: naming the argument whose shape is not [T, B].
    """
    check_shapes(rewards=rewards, values=values, mask=mask)
    # upcoming[t]: the value at the first step from t on that is not dead, or after the last.
    known = torch.cat((values.masked_fill(~mask, 0.0), last_values.unsqueeze(0)))
    waits = torch.cat((~mask, torch.zeros_like(mask[:1]))).to(values.dtype)
    upcoming = linear_recurrence(increments=known, decays=waits)
    deltas = (rewards + discount * upcoming[1:] - values).masked_fill(~mask, 0.0)
    decays = torch.ones_like(values).masked_fill_(mask, discount * lam)
    advantages = linear_recurrence(increments=deltas, decays=decays).masked_fill(~mask, 0.0)
    return Advantages(advantages, advantages + values)


def running_returns(*, rewards: Tensor, before: Tensor, discount: float, mask: Tensor) -> Tensor:
    """G[t] = discount * G[t-1] + rewards[t], with G[-1] = before [B]: what was collected up to a step, where a return
    says what is to come. [T, B]; at a dead step (mask False) it stays as it was.

    Raises:
      ValueError: naming the argument whose shape is not [T, B].
    """
    check_shapes(rewards=rewards, mask=mask)
    decays = torch.ones_like(rewards).masked_fill_(mask, discount)
    increments = rewards.masked_fill(~mask, 0.0)
    increments[0] += decays[0] * before
    return linear_recurrence(increments=increments.flip(0), decays=decays.flip(0)).flip(0)
