"""What the actors of a run keep, asked of all of them at once for a checkpoint."""

from __future__ import annotations

import logging

from pydantic import JsonValue
from ray.exceptions import RayError

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.events import Event, ShardStates
from rollcall.deploy.runtimes.on_ray.calls import Answer
from rollcall.deploy.runtimes.on_ray.faults import cause_of

_log = logging.getLogger("rollcall")


def merged_states(answer: Answer) -> list[Event]:
    """The states of all actors, if every one of them has one."""
    tensors: dict[str, Array] = {}
    meta: dict[str, JsonValue] = {}
    try:
        states = answer()
    except RayError as error:
        _log.warning("the actors' states cannot be had: %s", cause_of(error))
        return [ShardStates(None)]
    if any(state is None for state in states):
        return [ShardStates(None)]
    for state in states:
        tensors |= state[0]
        meta |= state[1]
    return [ShardStates((tensors, meta))]
