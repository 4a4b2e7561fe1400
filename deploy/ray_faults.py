"""What Ray's errors mean, in one short line each."""

from __future__ import annotations

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

START_TIMEOUT_S = 300.0  # importing torch and building an env or an engine on a loaded machine


def cause_of(error: RayError) -> BaseException:
    """The exception a task raised, without Ray's wrapping."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, BaseException) else error
    return error


def death_of(error: RayActorError) -> str:
    text = " ".join(str(error).split())
    return text[:200]


def no_room_for(member: str) -> str:
    free, total = ray.available_resources(), ray.cluster_resources()
    return (
        f"{member} did not start within {START_TIMEOUT_S:.0f} s: the cluster has {total.get('CPU', 0):.0f} CPUs, "
        f"{free.get('CPU', 0):.0f} of them free; each actor and each learner process needs one"
    )
