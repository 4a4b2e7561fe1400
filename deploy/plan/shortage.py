"""What is said of a process that had too little memory: how its error is told from others, and the two lines that it
becomes: what the process holds by the run's plan, and the settings that make that smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rollcall.cluster.errors import REMEDY, RollcallError
from rollcall.deploy.plan.needs import Role

if TYPE_CHECKING:  # it imports torch, and whoever tells of Ray's errors does without: the parameter server
    from rollcall.deploy.plan.planning import Plan

LONGEST = 150  # characters of what an allocator says
# How allocators say it, and vLLM of a GPU that others have filled, or whose share is too small for a model.
_SIGNS = (
    "CUDA out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "No available memory for the cache blocks",
    "Free memory on device",
    "KV cache is needed, which is larger than the available KV cache memory",
)
_ERRORS = ("OutOfMemoryError", "MemoryError")  # Ray's and torch's have one name; torch is not imported here
TAKES_LESS = (
    "a smaller algorithm.token_budget (language) or more algorithm.num_minibatches (control), "
    "policy.gradient_checkpointing, a smaller model, fewer actors"
)


def said_of_memory(error: BaseException) -> str:
    """What an error says of memory that could not be had; nothing for any other error."""
    text = " ".join(str(error).split())
    memory = isinstance(error, MemoryError) or type(error).__name__ in _ERRORS
    if not memory and not any(sign in text for sign in _SIGNS):
        return ""
    said = next((text[text.index(sign) :] for sign in _SIGNS if sign in text), text)
    return said.partition(". ")[0][:LONGEST] or "no more could be had"


def short_of_memory(member: str, used: str, plan: Plan | None, role: Role | None) -> str:
    """Two lines. `used`: what the error said; no plan: what a run needs could not be known before it began."""
    if plan is None or role is None:
        return f"{member} ran out of memory: {used}\n{REMEDY}{TAKES_LESS}"
    return f"{member} ran out of memory: {used}; by its plan it takes {plan.held(role)}\n{plan.smaller([role])}"


@contextmanager
def memory_explained(plan: Callable[[], Plan | None]) -> Iterator[None]:
    """Around what the driver's own process does; its plan is asked for when there is something to explain.

    Raises:
      RollcallError: two lines, in the place of an allocator's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        used = said_of_memory(error)
        if not used:
            raise
        made = plan()
        role = None if made is None else _drivers_own(made)
        raise RollcallError(short_of_memory(f"the {role.name if role else 'driver'}", used, made, role)) from error


def _drivers_own(plan: Plan) -> Role:
    """Beside others it is called so; alone it is all that there is."""
    return next((role for role in plan.needs.roles if role.name == "driver"), plan.needs.roles[0])
