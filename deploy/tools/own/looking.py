"""`rollcall check`: an env, a reward or a task of the user's is called a few times, as a run would call it, and what is
wrong with it is said in a line each."""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import gymnasium as gym

from rollcall.cluster.inputs.import_path import import_object
from rollcall.deploy.tools.own.env_look import look_at_env
from rollcall.deploy.tools.own.seen import Seen
from rollcall.deploy.tools.own.text_look import look_at_reward, look_at_task

What = Literal["env", "reward", "task"]
WHATS = get_args(What)
DEADLINE_S = 60.0  # for all calls together, which take seconds
_REWARDS = {"response", "completion", "solution_str", "responses", "completions", "item", "items"}


def look_at(name: str, kwargs: Mapping[str, Any], what: What | None = None) -> Seen:
    """`name`: module:thing, or a gymnasium id. `kwargs`: of an env's constructor, a task's settings, or columns of a
    reward's rows. `what` it is, where that is not to be seen from it.

    Raises:
      BadInput: when there is nothing of that name.
    """
    what = what or what_it_is(name)
    look = {"env": look_at_env, "task": look_at_task, "reward": look_at_reward}[what]
    with _deadline(DEADLINE_S):
        return look(name, kwargs)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """What hangs is ended by an error in its own line, and every second again. Python alone is reached, in the main
    thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeoutError(f"it has not come back within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def what_it_is(name: str) -> What:
    """A class with rows and a judge is a task, a function of responses a reward, and all else makes an env."""
    if ":" not in name or name.startswith("envpool:"):
        return "env"
    thing = import_object(name)
    if isinstance(thing, type):
        is_task = hasattr(thing, "rows") and hasattr(thing, "judge") and not issubclass(thing, gym.Env)
        return "task" if is_task else "env"
    try:
        parameters = set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return "env"
    return "reward" if parameters & _REWARDS else "env"
