"""V-trace: off-policy corrected value targets and policy-gradient advantages, a pure function over [T, B] tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rollcall.learners.maths.returns import check_shapes, credit_passes, linear_recurrence, one_step_returns


class VTraceReturns(NamedTuple):
    vs: Tensor  # [T, B]: the value targets v_s
    advantages: Tensor  # [T, B]: r_s + discount * v_{s+1} - V(x_s), to be weighted with rho_s; 0 at a dead step


def vtrace(
    *,
    behaviour_logprobs: Tensor,
    target_logprobs: Tensor,
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float,
    lam: float,
    rho_bar: float,
    c_bar: float,
    mask: Tensor | None = None,
) -> VTraceReturns:
    """V-trace (Espeholt et al., 2018, arXiv:1802.01561, section 4.1). All tensors are [T, B].

        v_s = V(x_s) + sum_{t >= s} discount^(t-s) * (prod_{s <= i < t} c_i) * delta_t
        delta_t = rho_t * (r_t + discount * V(x_{t+1}) - V(x_t))
        rho_t = min(rho_bar, ratio_t), c_i = lam * min(c_bar, ratio_i), ratio = exp(target - behaviour log-probability)

    rho_bar decides which policy's value is the fixed point, c_bar only how fast credit travels. Bounds of infinity clip
    nothing.

    The sum ends with the episode and with the fragment. There V(x_{t+1}) and v_{t+1} are next_values[t] at a truncated
    step and at the fragment's last one, and 0 at a terminated one. At a dead step (mask False) v_s is V(x_s) and the
    advantage is 0.

    Raises:
      ValueError: naming the argument whose shape is not [T, B].
    """
    check_shapes(
        rewards=rewards,
        behaviour_logprobs=behaviour_logprobs,
        target_logprobs=target_logprobs,
        values=values,
        next_values=next_values,
        terminated=terminated,
        truncated=truncated,
        mask=mask,
    )
    ratios = torch.exp(target_logprobs - behaviour_logprobs)
    passes = credit_passes(terminated=terminated, truncated=truncated, mask=mask)
    errors = one_step_returns(rewards=rewards, next_values=next_values, terminated=terminated, discount=discount)
    errors -= values
    deltas = ratios.clamp(max=rho_bar) * errors
    if mask is not None:
        deltas = deltas.masked_fill_(~mask, 0.0)
    decays = (ratios.clamp(max=c_bar) * (discount * lam)).masked_fill_(~passes, 0.0)
    corrections = linear_recurrence(increments=deltas, decays=decays)  # v_s - V(x_s)

    # v_{s+1} differs from V(x_{s+1}), which `errors` already holds, by the next step's correction: zero at a border.
    advantages = errors
    advantages[:-1] += discount * corrections[1:].masked_fill(~passes[:-1], 0.0)
    if mask is not None:
        advantages = advantages.masked_fill_(~mask, 0.0)
    return VTraceReturns(values + corrections, advantages)
