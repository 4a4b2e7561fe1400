"""A control policy as one function of tensors, from raw observations to the action that the env takes: what is exported
for programs that have neither this package nor torch. Greedy; the normaliser and the bounds are in it."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from rollcall.learners.maths.categorical import Categorical, MultiCategorical
from rollcall.learners.maths.distributions import ActionDistribution, DiagonalGaussian
from rollcall.learners.maths.epsilon_greedy import EpsilonGreedy
from rollcall.learners.maths.noisy_actions import NoisyActions
from rollcall.learners.models.networks import ActorCritic
from rollcall.learners.models.torsos import Tanh

ACTION, MASK, STATE, STARTS, NEXT_STATE = "action", "action_mask", "state", "episode_starts", "next_state"


class GreedyPolicy(nn.Module):
    """Positional tensors in the order of `inputs`, to those of `outputs`.

    Inputs: each observation [B, *shape] raw, by its name; `action_mask` bool [B, mask_size] where it is asked for; of a
    recurrent policy `state` float32 [num_states, B, hidden] (zeros at first) and `episode_starts` bool [B].
    Outputs: `action` [B, ...] as the env takes it; what the choice was made of (`logits`, `values`, or `mean` and
    `log_std`), before the mask; of a recurrent policy `next_state`, for the next call.
    """

    def __init__(self, module: ActorCritic, *, masked: bool) -> None:
        """`module` is copied.

        Raises:
          ValueError: where actions of its distribution cannot be masked and are to be, or an observation is called as
            one of the other tensors is.
        """
        super().__init__()
        if masked and not module.distribution.mask_size:
            raise ValueError("masked=True: continuous actions cannot be masked")
        self.module = _plain(module)
        self.masked = masked
        self.names = tuple(module.observation_spaces)
        beside = (*((MASK,) if masked else ()), *((STATE, STARTS) if module.is_recurrent else ()))
        self.inputs = (*self.names, *beside)
        self.outputs = (
            ACTION,
            *told_names(module.distribution),
            *((NEXT_STATE,) if module.is_recurrent else ()),
        )
        clashing = {*beside, *self.outputs} & set(self.names)
        if clashing:
            raise ValueError(f"an observation is called {sorted(clashing)[0]!r}, as one of the policy's own tensors")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, tensors, strict=True))
        observations = {name: given[name] for name in self.names}
        state: tuple[Tensor, ...] = ()
        if self.module.is_recurrent:
            params, after = self.module.step(observations, given[STATE], given[STARTS])
            state = (after,)
        else:
            params = self.module.policy_params(observations)
        distribution = self.module.distribution
        chosen = distribution.mode(params, given.get(MASK))
        return (env_actions(distribution, chosen), *told(distribution, params), *state)


def _plain(module: ActorCritic) -> ActorCritic:
    """A copy that computes as an acting policy does: weights without noise, tanh as it is written."""
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    copied.draw_noise(None)
    for part in copied.modules():
        if isinstance(part, nn.Sequential):
            for name, child in part.named_children():
                if isinstance(child, Tanh):
                    setattr(part, name, nn.Tanh())
    return copied


def told(distribution: ActionDistribution, params: Tensor) -> tuple[Tensor, ...]:
    """What a greedy choice is made of, from params [..., P]."""
    if isinstance(distribution, EpsilonGreedy):
        return (params[..., :-1],)
    if isinstance(distribution, DiagonalGaussian):
        return (params[..., : distribution.dim], params[..., distribution.dim :])
    return () if isinstance(distribution, NoisyActions) else (params,)


def told_names(distribution: ActionDistribution) -> tuple[str, ...]:
    """Of what `told` gives."""
    if isinstance(distribution, EpsilonGreedy):
        return ("values",)
    if isinstance(distribution, DiagonalGaussian):
        return ("mean", "log_std")
    return () if isinstance(distribution, NoisyActions) else ("logits",)


def env_actions(distribution: ActionDistribution, stored: Tensor) -> Tensor:
    """`distribution.to_env`, of tensors."""
    if isinstance(distribution, Categorical | EpsilonGreedy):
        return (stored + distribution.start).to(_torch_dtype(distribution.dtype))
    if isinstance(distribution, MultiCategorical):
        if distribution.start:
            stored = stored + torch.tensor(distribution.start)
        shaped = stored.reshape(-1, *distribution.env_shape) if distribution.env_shape else stored
        return shaped.to(_torch_dtype(distribution.dtype))
    assert isinstance(distribution, DiagonalGaussian | NoisyActions)
    low, high = torch.from_numpy(distribution.low), torch.from_numpy(distribution.high)
    wide = stored.double()
    if isinstance(distribution, NoisyActions) or distribution.squash == "tanh":
        unit = wide if isinstance(distribution, NoisyActions) else torch.tanh(wide)
        wide = low + (unit + 1.0) * (0.5 * (high - low))
    wide = torch.minimum(torch.maximum(wide, low), high)
    shaped = wide.reshape(-1, *distribution.env_shape) if distribution.env_shape else wide
    return shaped.to(_torch_dtype(distribution.dtype))


def _torch_dtype(dtype: np.dtype[np.generic]) -> torch.dtype:
    return torch.from_numpy(np.zeros(1, dtype)).dtype
