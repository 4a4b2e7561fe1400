"""The distribution of an actor that mostly takes the action of the largest value, and now and then any: as a stateless
function of its parameters, as the others are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.maths.categorical import Categorical


@dataclass(frozen=True, eq=False)
class EpsilonGreedy:
    """One choice among n: params [..., n + 1] are the values of the actions, and epsilon. With probability epsilon the
    action is any that is allowed, each alike, and else the one of the largest value."""

    n: int
    start: int = 0  # the env's name for choice 0
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.int64))  # of the env's actions

    action_shape: tuple[int, ...] = field(default=(), init=False)
    action_dtype: torch.dtype = field(default=torch.int64, init=False)

    @property
    def num_params(self) -> int:
        return self.n + 1

    @property
    def mask_size(self) -> int:
        return self.n

    def log_prob(self, params: Tensor, actions: Tensor, action_mask: Tensor | None = None) -> Tensor:
        probs = self._probs(params.float(), action_mask)
        return probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1).log()

    def entropy(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        probs = self._probs(params.float(), action_mask)
        return -torch.xlogy(probs, probs).sum(-1)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return best_action(params[..., :-1], action_mask)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """[*shape, 2]: whether to explore, and which action then."""
        return torch.rand((*shape, 2), generator=generator)

    def sample(self, params: Tensor, noise: Tensor, action_mask: Tensor | None = None) -> Tensor:
        explores = noise[..., 0] < params[..., -1]
        allowed = self._allowed(params, action_mask).cumsum(-1)
        drawn = (noise[..., 1] * allowed[..., -1]).floor()  # how many allowed ones come before it
        any_action = (allowed <= drawn.unsqueeze(-1)).sum(-1).clamp(max=self.n - 1)
        return torch.where(explores, any_action, self.mode(params, action_mask))

    def to_env(self, actions: Array) -> Array:
        return self._categorical.to_env(actions)

    def from_env(self, actions: Array) -> Array:
        return self._categorical.from_env(actions)

    def check_mask(self, action_mask: Array) -> None:
        self._categorical.check_mask(action_mask)

    @property
    def _categorical(self) -> Categorical:
        return Categorical(self.n, start=self.start, dtype=self.dtype)

    def _allowed(self, params: Tensor, action_mask: Tensor | None) -> Tensor:
        """float32 [..., n]; all, where nothing is allowed."""
        if action_mask is None:
            return torch.ones_like(params[..., :-1])
        return (action_mask | ~action_mask.any(-1, keepdim=True)).float()

    def _probs(self, params: Tensor, action_mask: Tensor | None) -> Tensor:
        allowed, epsilon = self._allowed(params, action_mask), params[..., -1:]
        greedy = torch.nn.functional.one_hot(self.mode(params, action_mask), self.n)
        return epsilon * allowed / allowed.sum(-1, keepdim=True) + (1.0 - epsilon) * greedy


def best_action(values: Tensor, action_mask: Tensor | None = None) -> Tensor:
    """int64 [...]: of the largest value among [..., n], among those that are allowed."""
    if action_mask is not None:
        values = values.masked_fill(~action_mask, torch.finfo(values.dtype).min)
    return values.argmax(-1)
