"""An env shard in a checkpoint: captured as plain data, written into a shard built afresh, and trusted only after a
round trip, since some envs hide state where nobody can find it. Never pickles anything."""

from __future__ import annotations

import copy
import itertools
import json
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rollcall.actors.control.unroll import Shard, begin_shard
from rollcall.actors.envs.plain_state import Capture, Restore, UnsupportedStateError
from rollcall.actors.envs.vector import EnvGroup, Reset, Step
from rollcall.cluster.errors import EnvFailure, NonFinite
from rollcall.cluster.messages.records import Array

_WARM_UP_STEPS = 50
_COMPARED_STEPS = 100
_STEPS_AFTER_RESET = 20


@dataclass(frozen=True)
class State:
    """A shard's state: `tree` is JSON, and its arrays stand beside it."""

    incarnation: int
    tree: Any
    arrays: dict[str, Array]


class MakeGroup(Protocol):
    def __call__(self, *, seed: int) -> EnvGroup: ...


def capture(shard: Shard) -> State | None:
    """Everything from which the shard goes on: its envs, what they show, the episodes and the recurrent state under
    way. None where part of it is not plain data (an env in another process, or in a C library)."""
    reader = Capture()
    try:
        tree = reader.node(shard, f"shard {shard.index}")
    except UnsupportedStateError:
        return None
    return State(shard.incarnation, tree, reader.arrays)


def restore(shard: Shard, state: State) -> None:
    """Brings a shard that was built in the same way, and reset, to a captured state.

    Raises:
      UnsupportedStateError: where the two differ in more than state. The shard is of no use then.
    """
    Restore(state.arrays).value(state.tree, shard, f"shard {shard.index}")


def is_exact(make_group: MakeGroup) -> bool:
    """Whether shards of these envs can be restored exactly: one that was captured, written down and restored into envs
    of another seed agrees with the original, to the bit, over 100 identical steps, a reset and 20 more. Envs that raise
    or give NaN meanwhile were not seen to: whether that passes, the run finds out."""
    with ExitStack() as groups:
        original = groups.enter_context(closing(make_group(seed=1)))
        try:
            fresh = groups.enter_context(closing(make_group(seed=2)))
        except Exception:  # two at once cannot be made: of a port or a device there is one
            return False
        try:
            return _agree(begin_shard(0, 0, original), begin_shard(0, 0, fresh))
        except (UnsupportedStateError, NonFinite, EnvFailure):
            return False


def _agree(original: Shard, fresh: Shard) -> bool:
    actions = _RandomActions(original.group)
    for _ in range(_WARM_UP_STEPS):
        _advance(original, original.group.step(actions.draw(original.action_mask)))
    state = capture(original)
    if state is None:
        return False
    restore(fresh, _written_and_read(state))
    if not _shows_same(original, fresh):
        return False
    for _ in range(_COMPARED_STEPS):
        if not _step_both(original, fresh, actions.draw(original.action_mask)):
            return False
    # Episodes may be longer than that, and a forgotten random stream show only at the next reset.
    unseeded = [None] * original.group.num_envs
    for shard in (original, fresh):
        _advance(shard, shard.group.reset(unseeded))
    if not _shows_same(original, fresh):
        return False
    return all(_step_both(original, fresh, actions.draw(original.action_mask)) for _ in range(_STEPS_AFTER_RESET))


def _written_and_read(state: State) -> State:
    tensors = load_tensors(save_tensors(state.arrays)) if state.arrays else {}
    return State(state.incarnation, json.loads(json.dumps(state.tree)), tensors)


def _step_both(original: Shard, fresh: Shard, actions: Array) -> bool:
    one, other = original.group.step(actions), fresh.group.step(actions.copy())
    _advance(original, one)
    _advance(fresh, other)
    pairs = [
        (one.rewards, other.rewards),
        (one.terminated, other.terminated),
        (one.truncated, other.truncated),
        (one.mask, other.mask),
        (one.final_envs, other.final_envs),
        *((array, other.final_observations[name]) for name, array in one.final_observations.items()),
    ]
    return one.lost == other.lost and all(map(_same_bits, *zip(*pairs, strict=True))) and _shows_same(original, fresh)


def _advance(shard: Shard, shown: Reset | Step) -> None:
    shard.observations, shard.action_mask = shown.observations, shown.action_mask


def _shows_same(one: Shard, other: Shard) -> bool:
    masks = itertools.zip_longest([one.action_mask], [other.action_mask])
    return all(_same_bits(array, other.observations[name]) for name, array in one.observations.items()) and all(
        a is b or (a is not None and b is not None and _same_bits(a, b)) for a, b in masks
    )


def _same_bits(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


class _RandomActions:
    """Actions for a group, drawn from a copy of its space so that the envs' own random streams are left alone."""

    def __init__(self, group: EnvGroup) -> None:
        self._space = copy.deepcopy(group.action_space)
        self._space.seed(0)
        self._num_envs = group.num_envs

    def draw(self, masks: Array | None) -> Array:
        if masks is None or not hasattr(self._space, "n"):
            return np.stack([self._space.sample() for _ in range(self._num_envs)])
        return np.array([self._space.sample(mask=mask.astype(np.int8)) for mask in masks])
