"""Actions that are all alike, before there is a policy worth following. The switch is a buffer, hence part of the
weights: the learner turns it when it begins to learn, and actors follow with the next version."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rollcall.learners.maths.distributions import ActionDistribution, DiagonalGaussian
from rollcall.learners.maths.epsilon_greedy import EpsilonGreedy
from rollcall.learners.maths.noisy_actions import NoisyActions

_NEAR_ONE = 1.0 - 1e-6  # whose arc tangent is finite in float32


class RandomStart(nn.Module):
    """In place of a policy's own actions: uniform ones, of the same noise."""

    on: Tensor  # bool []

    def __init__(self, distribution: ActionDistribution) -> None:
        """Raises ValueError where actions have no bounds to be uniform between."""
        super().__init__()
        if isinstance(distribution, EpsilonGreedy):
            raise ValueError(
                "random_start=true: values of actions are explored by epsilon, which begins at 1: remove it"
            )
        if isinstance(distribution, DiagonalGaussian) and distribution.squash != "tanh":
            raise ValueError("random_start=true: actions that are clipped may be anything: set policy.squash=tanh")
        self._distribution = distribution
        self.register_buffer("on", torch.ones((), dtype=torch.bool))

    def init_missing(self) -> None:
        """Weights that know no switch are of a policy that acts."""
        self.on.fill_(False)

    def sample(self, noise: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """[..., *action_shape], as the distribution's `sample` gives them, of the same noise."""
        distribution = self._distribution
        if not isinstance(distribution, DiagonalGaussian | NoisyActions):
            return distribution.sample(torch.zeros(noise.shape), noise, action_mask)
        uniform = torch.erf(noise * math.sqrt(0.5))  # a normal's distribution function, from -1 to 1
        return uniform if isinstance(distribution, NoisyActions) else uniform.clamp(-_NEAR_ONE, _NEAR_ONE).atanh()

    def log_prob(self, actions: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """[...], of actions between -1 and 1 where they are continuous."""
        distribution = self._distribution
        if not isinstance(distribution, DiagonalGaussian | NoisyActions):
            lead = actions.shape[: actions.dim() - len(distribution.action_shape)]
            return distribution.log_prob(torch.zeros(*lead, distribution.num_params), actions, action_mask)
        return torch.full(actions.shape[:-1], -distribution.dim * math.log(2.0))
