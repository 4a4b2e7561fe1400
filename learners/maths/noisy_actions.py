"""Actions of a deterministic policy, and the noise that explores around them, as an ActionDistribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False)
class NoisyActions:
    """tanh(params) and normal noise, cut to [-1, 1] (Fujimoto et al., 2018, arXiv:1802.09477). params and stored
    actions are float32 [..., D]; the env takes them rescaled to its bounds. `log_prob` is the noise's density, which is
    not cut; without noise there is none, and it is 0."""

    dim: int
    low: Array  # float64 [D]
    high: Array
    noise_std: float
    env_shape: tuple[int, ...] = ()  # of one action as the env takes it; empty: (D,)
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))

    action_dtype: torch.dtype = field(default=torch.float32, init=False)
    mask_size: int = field(default=0, init=False)

    @property
    def num_params(self) -> int:
        return self.dim

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def log_prob(self, params: Tensor, actions: Tensor, action_mask: Tensor | None = None) -> Tensor:
        self._refuse(action_mask)
        if self.noise_std == 0.0:
            return torch.zeros(params.shape[:-1])
        standard = (actions - torch.tanh(params.float())) / self.noise_std
        return (-0.5 * standard.square() - math.log(self.noise_std) - _HALF_LOG_2PI).sum(-1)

    def entropy(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        self._refuse(action_mask)
        each = 0.0 if self.noise_std == 0.0 else math.log(self.noise_std) + 0.5 + _HALF_LOG_2PI
        return torch.full(params.shape[:-1], self.dim * each)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        self._refuse(action_mask)
        return torch.tanh(params)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn((*shape, self.dim), generator=generator)

    def sample(self, params: Tensor, noise: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return torch.add(self.mode(params, action_mask), noise, alpha=self.noise_std).clamp_(-1.0, 1.0)

    def to_env(self, actions: Array) -> Array:
        # In float64, as DiagonalGaussian.to_env.
        wide = self.low + (actions.astype(np.float64) + 1.0) * (0.5 * (self.high - self.low))
        wide = np.minimum(np.maximum(wide, self.low), self.high)
        if self.env_shape:
            wide = wide.reshape(wide.shape[:-1] + self.env_shape)
        actions_taken: Array = wide.astype(self.dtype)
        return actions_taken

    def from_env(self, actions: Array) -> Array:
        shape = self.env_shape or (self.dim,)
        wide = actions.reshape(*actions.shape[: actions.ndim - len(shape)], self.dim).astype(np.float64)
        stored: Array = np.clip(2.0 * (wide - self.low) / (self.high - self.low) - 1.0, -1.0, 1.0).astype(np.float32)
        return stored

    def check_mask(self, action_mask: Array) -> None:
        self._refuse(action_mask)

    def _refuse(self, action_mask: object) -> None:
        if action_mask is not None:
            raise ValueError("action_mask: continuous actions cannot be masked; remove it from the environment's info")


def noisy_actions(space: gym.Space[Any], noise_std: float) -> NoisyActions:
    """Raises ValueError where a space has no bounds, or is none of floats."""
    told = f"exploration_noise={noise_std:g}: a deterministic policy with noise"
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"{told} acts in a Box of floats, and the actions are {space}: leave it out")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(f"{told} needs finite bounds, and the actions are {space}")
    return NoisyActions(
        int(np.prod(space.shape, dtype=np.int64)),
        low=space.low.reshape(-1).astype(np.float64),
        high=space.high.reshape(-1).astype(np.float64),
        noise_std=noise_std,
        env_shape=() if len(space.shape) == 1 else space.shape,
        dtype=np.dtype(space.dtype),
    )
