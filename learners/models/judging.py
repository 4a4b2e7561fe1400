"""What an actor makes of its own experience before it hands it on: how far its values were off, so that whoever keeps
the experience knows at once what is worth drawing (Horgan et al., 2018, arXiv:1803.00933)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.steps import Unroll
from rollcall.learners.maths.returns import n_step_returns
from rollcall.learners.models.networks import ActorCritic


@dataclass(frozen=True)
class Judging:
    """|TD error| of n steps, by the actor's own network; over fewer steps where the unit ends."""

    discount: float
    n_step: int

    @torch.no_grad()
    def td_errors(self, network: ActorCritic, params: Tensor, unroll: Unroll[Array]) -> Array:
        """float32 [T, B], 0 at steps that are no experience. `params`: [T, B, P], as the network gave them."""
        steps, mask = unroll.steps, torch.from_numpy(unroll.steps.mask)
        allowed = None if steps.action_mask is None else torch.from_numpy(steps.action_mask)
        values = params[..., :-1]
        best = values if allowed is None else values.masked_fill(~allowed, torch.finfo(values.dtype).min)
        joined = {
            name: torch.from_numpy(np.concatenate([unroll.last_observations[name], unroll.final_observations[name]]))
            for name in network.observation_spaces
        }
        after = network.policy_params(joined)[..., :-1].amax(-1)
        num_envs = unroll.shape[1]
        next_values = torch.cat((best[1:].amax(-1), after[None, :num_envs]))
        t, b = torch.from_numpy(unroll.final_index).unbind(1)
        next_values[t, b] = after[num_envs:]
        targets = n_step_returns(
            rewards=torch.from_numpy(steps.rewards).float(),
            next_values=next_values,
            terminated=torch.from_numpy(steps.terminated),
            truncated=torch.from_numpy(steps.truncated),
            mask=mask,
            discount=self.discount,
            n=self.n_step,
        )
        taken = values.gather(-1, torch.from_numpy(steps.actions).unsqueeze(-1)).squeeze(-1)
        errors: Array = torch.where(mask, (targets - taken).abs(), 0.0).numpy()
        return errors
