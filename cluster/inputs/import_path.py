"""Finds what a user names as `module:object`, from the user's working directory as from anywhere else.
Must never know what the object is for."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.given import NotGiven
from rollcall.cluster.inputs.near_names import did_you_mean

# What earlier releases' recipes name, and runs that were made with them.
_MOVED = {
    "rollcall.actors.envs": "rollcall.actors.envs.environment",
    "rollcall.actors.reviews": "rollcall.actors.tasks.reviews",
    "rollcall.learners.algorithms.control.bc": "rollcall.learners.algorithms.control.imitation.bc",
    "rollcall.learners.algorithms.control.dagger": "rollcall.learners.algorithms.control.imitation.dagger",
    "rollcall.learners.algorithms.control.dqn": "rollcall.learners.algorithms.control.off_policy.dqn",
    "rollcall.learners.algorithms.control.iql": "rollcall.learners.algorithms.control.off_policy.iql",
    "rollcall.learners.algorithms.control.sac": "rollcall.learners.algorithms.control.off_policy.sac",
    "rollcall.learners.algorithms.control.td3": "rollcall.learners.algorithms.control.off_policy.td3",
    "rollcall.reward_service.tastes": "rollcall.reward_service.raters.true_rewards",
    "rollcall.reward_service.raters.tastes": "rollcall.reward_service.raters.true_rewards",
}


def import_module(name: str) -> ModuleType:
    """A module by name, the working directory included in the search.

    Raises:
      BadInput: in one line, when there is no such module or it fails on import.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise BadInput(f"there is no module {missing!r} in {here} or on the Python path: fix the name") from None
        raise BadInput(f"module {name!r} needs the package {missing!r}, which is not installed: install it") from None
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise BadInput(f"module {name!r} fails on import ({text}): fix it") from error


def import_object(path: str) -> Callable[..., Any]:
    """`my_module:make_env` -> that function or class.

    Raises:
      BadInput: in one line, when the module cannot be imported or has no such name.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise BadInput(f"{path!r} is no import path: write module:object")
    module = import_module(_MOVED.get(module_name, module_name))
    try:
        found: Callable[..., Any] = getattr(module, attribute)
        return found
    except NotGiven as error:
        raise BadInput(str(error)) from None
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise BadInput(
            f"module {module_name!r} ({getattr(module, '__file__', 'built in')}) has no {attribute!r}"
            f"{did_you_mean(attribute, public, mark=':') or ': name one that it has'}"
        ) from None
