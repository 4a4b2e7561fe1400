"""What Ray's errors mean, in one short line each, and whose fault they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.inputs.user_code import described
from rollcall.deploy.plan.shortage import TAKES_LESS, said_of_memory

CONTROL_TIMEOUT_S = 60.0  # deadline of a call that only passes a message
START_TIMEOUT_S = 300.0  # importing torch and building an env or an engine on a loaded machine
BLAMELESS_DELAY_S = 1.0  # before a member starts again that went with its node or with the parameter server
LONGEST = 300  # characters of an error's text in a line
# Of Ray's long story of a process that it ended before the node was full.
_SIZE = r"[0-9.]+ ?[KMGT]?i?B"
_KILLED_FOR_MEMORY = re.compile(rf"memory used=(?P<own>{_SIZE}).*? was (?P<all>{_SIZE} / {_SIZE})")


def cause_of(error: RayError) -> BaseException:
    """The exception a task raised, without Ray's wrapping."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, BaseException) else error
    return error


def is_raised(error: RayError) -> bool:
    """Whether the code of a task raised, and not Ray where the task asked it for something."""
    cause = cause_of(error)
    return isinstance(error, RayTaskError) and (cause is error or not isinstance(cause, RayError))


def is_killed(error: BaseException) -> bool:
    """Whether the process is gone, and not by an exception of its code."""
    return isinstance(error, RayActorError) and not error.actor_init_failed


def raised_in(member: str, error: RayError, log: str) -> str:
    """What a member's own code raised, in one line with the place in it and its log, and the lines of its traceback.

    Raises:
      RollcallError: what the user gave cannot be used there; the driver could use it, so the remedy is another.
    """
    cause = cause_of(error)
    if isinstance(cause, BadInput):
        raise RollcallError(
            f"{member}: {cause} (in the driver's own process it was found: what a script alone defines or registers is "
            "not known to the other processes of a run; put it into a module, and name that: my_module:MyEnv-v0)"
        ) from error
    line, separator, trace = described(cause, str(error)).partition("\n")
    return f"{member} raised {line}; what it printed is in {log}{separator}{trace}"


def death_of(error: RayError) -> str:
    if memory := out_of_memory(error):
        return f"out of memory: {memory}"
    if isinstance(error, RayActorError) and error.actor_init_failed:
        # Its last words come last, after Ray's and the traceback.
        return str(error).strip().splitlines()[-1][:LONGEST]
    return " ".join(str(error).split())[:200]


def in_a_line(error: BaseException) -> str:
    """An error that a task raised, or that Ray has about it: one line, not too long to be read."""
    if memory := out_of_memory(error):
        return f"out of memory: {memory}; what takes less: {TAKES_LESS}"
    return " ".join(repr(error).split())[:LONGEST]


def out_of_memory(error: BaseException) -> str:
    """How much was used; nothing for any other error."""
    text = " ".join(str(error).split())
    if killed := _KILLED_FOR_MEMORY.search(text):
        return f"the process used {killed['own']}, and all of its node's {killed['all'].replace(' / ', ' of ')}"
    return said_of_memory(error)


def node_of(actor_died: RayActorError, node_id: str, nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the node went, and the actor only with it. `node_id`: where it ran, as far as that is known; `nodes`: as
    Ray lists them."""
    if actor_died.preempted or "node has died" in str(actor_died) or "node was terminated" in str(actor_died):
        return True
    return any(node["NodeID"] == node_id and not node["Alive"] for node in nodes)


def no_room_for(member: str) -> str:
    free, total = ray.available_resources(), ray.cluster_resources()
    return (
        f"{member} did not start within {START_TIMEOUT_S:.0f} s: the cluster has {total.get('CPU', 0):g} CPUs and "
        f"{total.get('GPU', 0):g} GPUs, {free.get('CPU', 0):g} and {free.get('GPU', 0):g} of them free"
    )
