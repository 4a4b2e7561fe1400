"""One learner batch of control experience as tensors: trajectories side by side, along the env axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.records import Array, GymTrajectory


@dataclass(frozen=True)
class GymBatch:
    """T steps of B envs (the envs of all trajectories). Time alignment and masks as in GymTrajectory.

    Trajectories of unequal length (`unit="episode"`) are padded at the end with mask False.
    """

    observations: Mapping[str, Tensor]  # name -> [T, B, ...], raw
    last_observations: Mapping[str, Tensor]  # [B, ...]
    final_index: Tensor  # int64 [N, 2]: (t, b) at which an episode ended
    final_observations: Mapping[str, Tensor]  # [N, ...]
    actions: Tensor  # [T, B] or [T, B, A]
    behaviour_logprobs: Tensor  # [T, B]
    rewards: Tensor  # [T, B]
    terminated: Tensor  # bool [T, B]
    truncated: Tensor  # bool [T, B]
    mask: Tensor  # bool [T, B]
    episode_starts: Tensor  # bool [T, B]
    action_mask: Tensor | None  # bool [T, B, num_actions]
    initial_recurrent_state: Tensor | None  # [num_states, B, hidden]

    @property
    def shape(self) -> tuple[int, int]:
        """(T, B)"""
        return int(self.mask.shape[0]), int(self.mask.shape[1])

    def with_rewards(self, rewards: Tensor) -> GymBatch:
        return replace(self, rewards=rewards)

    def to(self, device: torch.device) -> GymBatch:
        """The batch on another device; itself where it is there already."""
        if self.mask.device == device:
            return self
        moved = {item.name: _moved(getattr(self, item.name), device) for item in fields(self)}
        return GymBatch(**moved)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {name: tensor.to(device, non_blocking=True) for name, tensor in value.items()}
    return None if value is None else value.to(device, non_blocking=True)


def _tensor(array: Array) -> Tensor:
    # Arrays out of the object store are read-only and torch warns about those; a batch is never written to.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _join(arrays: Sequence[Array], *, axis: int) -> Tensor:
    return _tensor(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis))


def _join_padded(arrays: Sequence[Array], num_steps: int) -> Tensor:
    padded = [
        array
        if len(array) == num_steps
        else np.concatenate([array, np.zeros((num_steps - len(array), *array.shape[1:]), array.dtype)])
        for array in arrays
    ]
    return _join(padded, axis=1)


def stack_trajectories(trajectories: Sequence[GymTrajectory]) -> GymBatch:
    """Joins trajectories in the given order.

    Raises:
      ValueError: on no trajectories, or when they disagree about what they observe.
    """
    if not trajectories:
        raise ValueError("trajectories is empty: a learner batch needs at least one")
    names = list(trajectories[0].observations)
    for item in trajectories:
        if list(item.observations) != names:
            raise ValueError(f"trajectories observe {names} and {list(item.observations)}: one env per run")
    num_steps = max(item.mask.shape[0] for item in trajectories)
    offsets = np.cumsum([0, *(item.mask.shape[1] for item in trajectories[:-1])])
    final_index = [item.final_index + np.array([0, offset]) for item, offset in zip(trajectories, offsets, strict=True)]
    action_masks = [item.action_mask for item in trajectories if item.action_mask is not None]
    states = [item.initial_recurrent_state for item in trajectories if item.initial_recurrent_state is not None]
    return GymBatch(
        observations={n: _join_padded([t.observations[n] for t in trajectories], num_steps) for n in names},
        last_observations={n: _join([t.last_observations[n] for t in trajectories], axis=0) for n in names},
        final_index=_join(final_index, axis=0),
        final_observations={n: _join([t.final_observations[n] for t in trajectories], axis=0) for n in names},
        actions=_join_padded([t.actions for t in trajectories], num_steps),
        behaviour_logprobs=_join_padded([t.behaviour_logprobs for t in trajectories], num_steps),
        rewards=_join_padded([t.rewards for t in trajectories], num_steps),
        terminated=_join_padded([t.terminated for t in trajectories], num_steps),
        truncated=_join_padded([t.truncated for t in trajectories], num_steps),
        mask=_join_padded([t.mask for t in trajectories], num_steps),
        episode_starts=_join_padded([t.episode_starts for t in trajectories], num_steps),
        action_mask=_join_padded(action_masks, num_steps) if action_masks else None,
        initial_recurrent_state=_join(states, axis=1) if states else None,
    )
