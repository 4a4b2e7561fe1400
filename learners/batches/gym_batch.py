"""One learner batch of control experience as tensors: trajectories side by side, along the env axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rollcall.cluster.messages.arrays import Array, map_arrays
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.steps import EnvSteps, Unroll

# The envs of all trajectories. Trajectories of unequal length (`unit="episode"`) are padded at the end with mask False.
GymBatch = Unroll[Tensor]


def stack_trajectories(trajectories: Sequence[GymTrajectory], device: torch.device | None = None) -> GymBatch:
    """Joins trajectories in the given order, on a device.

    Raises:
      ValueError: on no trajectories, or when they disagree about what they observe.
    """
    if not trajectories:
        raise ValueError("trajectories is empty: a learner batch needs at least one")
    names = list(trajectories[0].steps.observations)
    for item in trajectories:
        if list(item.steps.observations) != names:
            raise ValueError(f"trajectories observe {names} and {list(item.steps.observations)}: one env per run")
    unrolls = [item.unroll for item in trajectories]
    num_steps = max(unroll.shape[0] for unroll in unrolls)
    offsets = np.cumsum([0, *(unroll.shape[1] for unroll in unrolls[:-1])])
    states = [unroll.initial_recurrent_state for unroll in unrolls]
    batch = Unroll(
        steps=EnvSteps.join([unroll.steps for unroll in unrolls], lambda arrays: _join_padded(arrays, num_steps)),
        last_observations=_by_name([unroll.last_observations for unroll in unrolls]),
        final_index=_join([u.final_index + np.array([0, offset]) for u, offset in zip(unrolls, offsets, strict=True)]),
        final_observations=_by_name([unroll.final_observations for unroll in unrolls]),
        initial_recurrent_state=_join([s for s in states if s is not None], axis=1) if states[0] is not None else None,
    )
    return batch if device is None else map_arrays(batch, lambda tensor: tensor.to(device, non_blocking=True))


def next_observations(batch: GymBatch) -> dict[str, Tensor]:
    """[T, B, ...]: what each step led to; the true last observation where an episode ended, not the next one's first.
    At a step with mask False it means nothing."""
    t, b = batch.final_index.unbind(1)
    following = {}
    for name, shown in batch.steps.observations.items():
        following[name] = torch.cat((shown[1:], batch.last_observations[name].unsqueeze(0)))
        following[name][t, b] = batch.final_observations[name]
    return following


def _by_name(observations: Sequence[Mapping[str, Array]]) -> dict[str, Tensor]:
    return {name: _join([item[name] for item in observations]) for name in observations[0]}


def _join_padded(arrays: Sequence[Array], num_steps: int) -> Tensor:
    padded = [
        array
        if len(array) == num_steps
        else np.concatenate([array, np.zeros((num_steps - len(array), *array.shape[1:]), array.dtype)])
        for array in arrays
    ]
    return _join(padded, axis=1)


def _join(arrays: Sequence[Array], axis: int = 0) -> Tensor:
    return _tensor(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis))


def _tensor(array: Array) -> Tensor:
    # Arrays out of the object store are read-only and torch warns about those; a batch is never written to.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
