"""Distributions over discrete actions, one or several at once: functions of logits. What every ActionDistribution
has, distributions.py says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array


def _masked(logits: Tensor, action_mask: Tensor | None) -> Tensor:
    # The lowest float, not -inf: exp of it is exactly 0 too, and a row with nothing allowed gives no NaN.
    return logits if action_mask is None else logits.masked_fill(~action_mask, torch.finfo(logits.dtype).min)


def _categorical_log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def _categorical_entropy(logits: Tensor, action_mask: Tensor | None) -> Tensor:
    logprobs = logits.log_softmax(-1)
    terms = logprobs.exp() * logprobs
    if action_mask is not None:
        terms = terms.masked_fill(~action_mask, 0.0)
    return -terms.sum(-1)


def _categorical_kl(logits: Tensor, others: Tensor, action_mask: Tensor | None) -> Tensor:
    logprobs = logits.log_softmax(-1)
    terms = logprobs.exp() * (logprobs - others.log_softmax(-1))
    if action_mask is not None:
        terms = terms.masked_fill(~action_mask, 0.0)
    return terms.sum(-1)


def _gumbel(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    # Drawn in float64: float32 uniforms would cut the tail off at probabilities of 6e-8.
    uniform = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
    return -torch.log(-torch.log(uniform.clamp_(min=1e-300))).to(torch.float32)


@dataclass(frozen=True, eq=False)
class Categorical:
    """One choice among n: params are logits [..., n], stored actions int64 [...] from 0."""

    n: int
    start: int = 0  # the env's name for choice 0
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.int64))  # of the env's actions

    action_shape: tuple[int, ...] = field(default=(), init=False)
    action_dtype: torch.dtype = field(default=torch.int64, init=False)

    @property
    def num_params(self) -> int:
        return self.n

    @property
    def mask_size(self) -> int:
        return self.n

    def log_prob(self, params: Tensor, actions: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return _categorical_log_prob(_masked(params.float(), action_mask), actions)

    def entropy(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return _categorical_entropy(_masked(params.float(), action_mask), action_mask)

    def kl(self, params: Tensor, others: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return _categorical_kl(_masked(params.float(), action_mask), _masked(others.float(), action_mask), action_mask)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return _masked(params, action_mask).argmax(-1)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return _gumbel((*shape, self.n), generator)

    def sample(self, params: Tensor, noise: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return _masked(params + noise, action_mask).argmax(-1)

    def to_env(self, actions: Array) -> Array:
        if self.start == 0 and actions.dtype == self.dtype:
            return actions
        return (actions + self.start).astype(self.dtype)

    def from_env(self, actions: Array) -> Array:
        return actions.astype(np.int64) - self.start

    def check_mask(self, action_mask: Array) -> None:
        if not action_mask.any(axis=-1).all():
            raise ValueError(
                f"action_mask allows none of the {self.n} actions in a row: the environment must allow one"
            )


@dataclass(frozen=True, eq=False)
class MultiCategorical:
    """Independent choices among nvec[k] each: params are all logits side by side, stored actions int64 [..., K].

    The action mask is the K masks side by side.
    """

    nvec: tuple[int, ...]
    start: tuple[int, ...] = ()  # the env's name for choice 0 of each; empty: zeros
    env_shape: tuple[int, ...] = ()  # of one action as the env takes it; empty: (K,)
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.int64))

    action_dtype: torch.dtype = field(default=torch.int64, init=False)

    @property
    def num_params(self) -> int:
        return sum(self.nvec)

    @property
    def mask_size(self) -> int:
        return sum(self.nvec)

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (len(self.nvec),)

    def _split(self, params: Tensor, action_mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        logits = torch.split(params, list(self.nvec), -1)
        masks = [None] * len(logits) if action_mask is None else torch.split(action_mask, list(self.nvec), -1)
        return [(_masked(part, mask), mask) for part, mask in zip(logits, masks, strict=True)]

    def log_prob(self, params: Tensor, actions: Tensor, action_mask: Tensor | None = None) -> Tensor:
        parts = self._split(params.float(), action_mask)
        terms = [_categorical_log_prob(part, actions[..., k]) for k, (part, _) in enumerate(parts)]
        return torch.stack(terms).sum(0)

    def entropy(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        parts = self._split(params.float(), action_mask)
        return torch.stack([_categorical_entropy(part, mask) for part, mask in parts]).sum(0)

    def kl(self, params: Tensor, others: Tensor, action_mask: Tensor | None = None) -> Tensor:
        pairs = zip(self._split(params.float(), action_mask), self._split(others.float(), action_mask), strict=True)
        return torch.stack([_categorical_kl(part, other, mask) for (part, mask), (other, _) in pairs]).sum(0)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return torch.stack([part.argmax(-1) for part, _ in self._split(params, action_mask)], -1)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return _gumbel((*shape, self.num_params), generator)

    def sample(self, params: Tensor, noise: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return self.mode(params + noise, action_mask)

    def to_env(self, actions: Array) -> Array:
        if self.start:
            actions = actions + np.asarray(self.start)
        if self.env_shape:
            actions = actions.reshape(actions.shape[:-1] + self.env_shape)
        return actions.astype(self.dtype, copy=False)

    def from_env(self, actions: Array) -> Array:
        lead = actions.shape[: actions.ndim - (len(self.env_shape) or 1)]
        stored: Array = actions.reshape(*lead, len(self.nvec)).astype(np.int64)
        return stored - np.asarray(self.start, np.int64) if self.start else stored

    def check_mask(self, action_mask: Array) -> None:
        begins = np.cumsum((0, *self.nvec[:-1]))
        if not np.logical_or.reduceat(action_mask, begins, axis=-1).all():
            raise ValueError(
                "action_mask allows nothing for one of the choices in a row: the environment must allow one"
            )
