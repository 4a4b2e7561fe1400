"""`rollcall check`: an env, a reward or a task of the user's is called a few times, as a run would call it, and what is
wrong with it is said in a line each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args

import gymnasium as gym

from rollcall.cluster.inputs.import_path import import_object
from rollcall.deploy.tools.own.env_look import look_at_env
from rollcall.deploy.tools.own.seen import Seen
from rollcall.deploy.tools.own.text_look import look_at_reward, look_at_task

What = Literal["env", "reward", "task"]
WHATS = get_args(What)
_REWARDS = {"response", "completion", "solution_str", "responses", "completions", "item", "items"}


def look_at(name: str, kwargs: Mapping[str, Any], what: What | None = None) -> Seen:
    """`name`: module:thing, or a gymnasium id. `kwargs`: of an env's constructor, a task's settings, or columns of a
    reward's rows. `what` it is, where that is not to be seen from it.

    Raises:
      BadInput: when there is nothing of that name.
    """
    what = what or what_it_is(name)
    if what == "env":
        return look_at_env(name, kwargs)
    return look_at_task(name, kwargs) if what == "task" else look_at_reward(name, kwargs)


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
