"""What Ray's errors mean, in one short line each, and whose fault they are."""

from __future__ import annotations

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.user_code import described

CONTROL_TIMEOUT_S = 60.0  # deadline of a call that only passes a message
START_TIMEOUT_S = 300.0  # importing torch and building an env or an engine on a loaded machine


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


def death_of(error: RayActorError) -> str:
    if error.actor_init_failed:  # its last words come last, after Ray's and the traceback
        return str(error).strip().splitlines()[-1][:300]
    return " ".join(str(error).split())[:200]


def node_of(actor_died: RayActorError, node_id: str) -> bool:
    """Whether the node went, and the actor only with it. `node_id`: where it ran, as far as that is known."""
    if actor_died.preempted or "node has died" in str(actor_died) or "node was terminated" in str(actor_died):
        return True
    return any(node["NodeID"] == node_id and not node["Alive"] for node in ray.nodes())


def no_room_for(member: str) -> str:
    free, total = ray.available_resources(), ray.cluster_resources()
    return (
        f"{member} did not start within {START_TIMEOUT_S:.0f} s: the cluster has {total.get('CPU', 0):g} CPUs and "
        f"{total.get('GPU', 0):g} GPUs, {free.get('CPU', 0):g} and {free.get('GPU', 0):g} of them free"
    )
