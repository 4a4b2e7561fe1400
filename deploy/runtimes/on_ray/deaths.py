"""What is said of a member that died or raised: of one that had too little memory, what it holds by the run's plan, and
the settings that make that smaller."""

from __future__ import annotations

from collections.abc import Callable

from ray.exceptions import GetTimeoutError, RayActorError, RayError

from rollcall.deploy.plan.machine import oom_kills
from rollcall.deploy.plan.needs import Unit
from rollcall.deploy.plan.planning import Plan
from rollcall.deploy.plan.shortage import short_of_memory
from rollcall.deploy.runtimes.on_ray.faults import cause_of, death_of, is_killed, out_of_memory, raised_in

_MAYBE_KILLED = "SIGKILL"  # among the reasons that Ray can think of for a process that is gone


class Deaths:
    """Of the members of one run."""

    def __init__(self, plan: Plan | None = None, *, kills: Callable[[], int] = oom_kills) -> None:
        """`kills`: how many processes the kernel has ended on this machine for want of memory."""
        self._plan = plan
        self._kills = kills
        self._before = kills()

    def of(self, member: str, unit: Unit, error: RayActorError | GetTimeoutError) -> str:
        """`member` died: why, in a line, or in two."""
        used = out_of_memory(error) or self._killed(error)
        return self._short_of_memory(member, unit, used) if used else f"{member} died ({death_of(error)})"

    def at_start(self, member: str, unit: Unit, error: RayError) -> str:
        """It did not start, and another one would not either: why. Nothing where it was killed by whomever, or whoever
        it asked was: the next may start."""
        cause = cause_of(error)
        used = out_of_memory(cause) or self._killed(error)
        if used:
            return self._short_of_memory(member, unit, used)
        if is_killed(cause):
            return ""
        why = death_of(error) if isinstance(error, RayActorError) else cause
        return f"{member} did not start: {why}"

    def raised(self, member: str, unit: Unit, error: RayError, log: str) -> str:
        """As raised_in."""
        used = out_of_memory(cause_of(error))
        return self._short_of_memory(member, unit, used) if used else raised_in(member, error, log)

    def _killed(self, error: BaseException) -> str:
        """By the kernel, as far as it counts."""
        if _MAYBE_KILLED not in str(error) or self._kills() <= self._before:
            return ""
        self._before = self._kills()
        return "the kernel ended its process, to have memory for others"

    def _short_of_memory(self, member: str, unit: Unit, used: str) -> str:
        role = None if self._plan is None else self._plan.needs.role(unit)
        return short_of_memory(member, used, self._plan, role)
