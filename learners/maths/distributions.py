"""Action distributions as stateless functions of a parameter tensor [..., P]: what both the actor's step and the
learner's ratio are made of. Knows nothing of networks, environments or losses; log-probabilities are float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rollcall.cluster.messages.arrays import Array
from rollcall.learners.maths.categorical import Categorical, MultiCategorical
from rollcall.learners.maths.choices import Squash

_LOG_2 = math.log(2.0)
_NEAREST_TO_BOUND = 1.0 - 1e-4  # of (-1, 1): where an action at the bound is taken to be, before its tanh
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
# Gauss-Hermite quadrature for the entropy of a squashed Gaussian: within 1e-2 nats per dimension up to a std of 3.
_GAUSS_HERMITE = np.polynomial.hermite_e.hermegauss(32)
_NODES: list[float] = _GAUSS_HERMITE[0].tolist()
_NODE_WEIGHTS: list[float] = (_GAUSS_HERMITE[1] / math.sqrt(2.0 * math.pi)).tolist()


class ActionDistribution(Protocol):
    """A family of distributions over one action space. An action [..., *action_shape] belongs to params [..., P].

    `action_mask` is bool [..., mask_size], True where the env allows the action. What it forbids has probability
    exactly 0. A row that allows nothing is the env's error: `check_mask` raises it at the actor, and everything else
    stays finite on such a row (steps that are padding have one), as if all were allowed.
    """

    @property
    def num_params(self) -> int:
        """How many numbers one distribution takes, P."""

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Of one stored action."""

    @property
    def action_dtype(self) -> torch.dtype:
        """Of stored actions."""

    @property
    def mask_size(self) -> int:
        """Width of the action mask; 0 where actions cannot be masked."""

    def log_prob(self, params: Tensor, actions: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """float32 [...], of stored actions."""

    def entropy(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """float32 [...], in nats."""

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The greedy action, in stored form."""

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """All the randomness that `sample` needs for params [*shape, P]: drawn once for a whole unit."""

    def sample(self, params: Tensor, noise: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Actions in stored form: a deterministic function of its arguments."""

    def to_env(self, actions: Array) -> Array:
        """Stored actions as the env takes them, in the dtype and shape of its space."""

    def from_env(self, actions: Array) -> Array:
        """Actions as the env takes them in stored form: somebody else's, to be imitated or judged. `to_env` of them are
        the same again, but for a tanh's bounds, which no number reaches."""

    def check_mask(self, action_mask: Array) -> None:
        """Raises ValueError if a row allows no action. Cheap enough for every step."""


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """Independent Gaussians: params are means and log standard deviations side by side, actions float32 [..., D].

    squash="clip": the density is the Gaussian's own; the env takes the action clipped to its bounds.
    squash="tanh": the stored action is u, *before* squashing; the env takes tanh(u) rescaled to its bounds. log_prob
      is the density of tanh(u) in (-1, 1): log N(u) - sum log(1 - tanh(u)^2), on the actor and on the learner alike.
      (The rescaling to the bounds would add a constant, which no ratio and no gradient sees.) The entropy is that of
      tanh(u), by quadrature. `mode` is the mean, which tanh maps to the median of the squashed action.
    """

    dim: int
    low: Array  # [D]
    high: Array  # [D]
    squash: Squash = "clip"
    env_shape: tuple[int, ...] = ()  # of one action as the env takes it; empty: (D,)
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))

    action_dtype: torch.dtype = field(default=torch.float32, init=False)
    mask_size: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        bounded = np.isfinite(self.low).all() and np.isfinite(self.high).all()
        if self.squash == "tanh" and not bounded:
            raise ValueError(f"squash=tanh needs finite bounds, got low={self.low}, high={self.high}: use squash=clip")

    @property
    def num_params(self) -> int:
        return 2 * self.dim

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def log_prob(self, params: Tensor, actions: Tensor, action_mask: Tensor | None = None) -> Tensor:
        self._refuse(action_mask)
        mean, log_std = torch.split(params.float(), self.dim, -1)
        standard = (actions - mean) * torch.exp(-log_std)
        terms = -0.5 * standard.square() - log_std - _HALF_LOG_2PI
        if self.squash == "tanh":
            terms = terms - _log_tanh_slope(actions)
        return terms.sum(-1)

    def entropy(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        self._refuse(action_mask)
        mean, log_std = torch.split(params.float(), self.dim, -1)
        terms = log_std + 0.5 + _HALF_LOG_2PI
        if self.squash == "tanh":
            nodes = mean.new_tensor(_NODES)
            node_weights = mean.new_tensor(_NODE_WEIGHTS)
            unsquashed = mean.unsqueeze(-1) + log_std.exp().unsqueeze(-1) * nodes
            terms = terms + (_log_tanh_slope(unsquashed) * node_weights).sum(-1)
        return terms.sum(-1)

    def kl(self, params: Tensor, others: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Of the Gaussians, and so of what tanh makes of them: no bijection changes a KL."""
        self._refuse(action_mask)
        mean, log_std = torch.split(params.float(), self.dim, -1)
        other_mean, other_log_std = torch.split(others.float(), self.dim, -1)
        log_ratio = log_std - other_log_std  # of the deviations
        moved = (mean - other_mean) * torch.exp(-other_log_std)
        return (0.5 * (torch.expm1(2.0 * log_ratio) + moved.square()) - log_ratio).sum(-1)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        self._refuse(action_mask)
        return params[..., : self.dim]

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn((*shape, self.dim), generator=generator)

    def sample(self, params: Tensor, noise: Tensor, action_mask: Tensor | None = None) -> Tensor:
        self._refuse(action_mask)
        mean, log_std = torch.split(params, self.dim, -1)
        return torch.addcmul(mean, log_std.exp(), noise)

    def to_env(self, actions: Array) -> Array:
        # In float64, so that rounding never leaves the bounds: casting down is monotone, and the bounds are exact.
        wide = actions.astype(np.float64)
        if self.squash == "tanh":
            wide = self.low + (np.tanh(wide) + 1.0) * (0.5 * (self.high - self.low))
        wide = np.minimum(np.maximum(wide, self.low), self.high)
        if self.env_shape:
            wide = wide.reshape(wide.shape[:-1] + self.env_shape)
        actions_taken: Array = wide.astype(self.dtype)
        return actions_taken

    def from_env(self, actions: Array) -> Array:
        shape = self.env_shape or (self.dim,)
        wide = actions.reshape(*actions.shape[: actions.ndim - len(shape)], self.dim).astype(np.float64)
        if self.squash == "tanh":
            unit = 2.0 * (wide - self.low) / (self.high - self.low) - 1.0
            wide = np.arctanh(np.clip(unit, -_NEAREST_TO_BOUND, _NEAREST_TO_BOUND))
        stored: Array = wide.astype(np.float32)
        return stored

    def check_mask(self, action_mask: Array) -> None:
        raise ValueError("action_mask: continuous actions cannot be masked; remove it from the environment's info")

    def _refuse(self, action_mask: Tensor | None) -> None:
        if action_mask is not None:
            raise ValueError("action_mask: continuous actions cannot be masked; pass None")


def _log_tanh_slope(unsquashed: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), without the cancellation."""
    return 2.0 * (_LOG_2 - unsquashed - F.softplus(-2.0 * unsquashed))


def distribution_for(space: gym.Space[Any], squash: Squash = "clip") -> ActionDistribution:
    """The distribution over an action space.

    Raises:
      ValueError: naming the space and what is supported.
    """
    if isinstance(space, gym.spaces.Discrete):
        return Categorical(int(space.n), start=int(space.start), dtype=np.dtype(space.dtype))
    if isinstance(space, gym.spaces.MultiDiscrete):
        start = tuple(int(value) for value in space.start.reshape(-1))
        return MultiCategorical(
            tuple(int(n) for n in space.nvec.reshape(-1)),
            start=start if any(start) else (),
            env_shape=() if space.nvec.ndim == 1 else tuple(space.nvec.shape),
            dtype=np.dtype(space.dtype),
        )
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return DiagonalGaussian(
            int(np.prod(space.shape, dtype=np.int64)),
            low=space.low.reshape(-1).astype(np.float64),
            high=space.high.reshape(-1).astype(np.float64),
            squash=squash,
            env_shape=() if len(space.shape) == 1 else space.shape,
            dtype=np.dtype(space.dtype),
        )
    raise ValueError(f"action space {space} is not supported: use Discrete, MultiDiscrete, or a Box of floats")
