"""What runs in the sandbox of a reward function that nobody trusts: it answers with the rewards of one segment of steps
after another. The sandbox contains the code; what is left out of its builtins here is for a clear message. Standard
library alone."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import math
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from rollcall.reward_service.sandbox.solution_channel import Channel, OtherEndGone

FUNCTION, PARAMETERS = "compute_reward", ("observation", "action", "next_observation", "terminated")
MODULES = (
    *("math", "cmath", "statistics", "itertools", "functools", "collections", "operator", "bisect", "heapq"),
    *("typing", "dataclasses", "enum", "numbers", "fractions", "decimal", "__future__"),
)
MAX_COMPONENTS, MAX_NAME = 20, 40
TAKEN = ("mean", "versions")  # names of other numbers in a run's records
_LEFT_OUT = ("open", "input", "exec", "eval", "compile", "breakpoint", "print", "help", "exit", "quit")
_FILE = "reward.py"
_CHANNEL = 3  # the descriptor
_MESSAGE_CHARACTERS = 300

Values = tuple[list[float], dict[str, list[float]]]  # of one segment: the rewards, and each component by its name


class Refused(Exception):
    """What the function gives is no reward; the message says what is wanted."""


def serve_reward(_: int, code: str) -> int:
    """Answers requests {"segments": [{"observations", "actions", "last_observation", "terminated"}, ...]} with
    {"results": [{"rewards": [T], "components": {name: mean}} or {"error": line}], "cpu_s": of this request}, until the
    other end is gone."""
    compiled: Any = None
    broken = ""
    try:
        compiled = compile(code, _FILE, "exec", dont_inherit=True)
    except BaseException as error:
        broken = _line(error)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        began = time.process_time()
        segments = request["segments"]
        results = [{"error": broken}] * len(segments) if broken else _all_scored(compiled, segments)
        return {"results": results, "cpu_s": time.process_time() - began}

    with contextlib.suppress(OtherEndGone):
        Channel(_CHANNEL, answer).serve()
    return 0


def _all_scored(compiled: Any, segments: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for segment in segments:
        results.append(_scored(compiled, segment))
        if str(results[-1].get("error")).startswith("MemoryError"):  # it takes long, and the others would end so too
            return [*results, *[results[-1]] * (len(segments) - len(results))]
    return results


def _scored(compiled: Any, segment: Mapping[str, Any]) -> dict[str, Any]:
    try:
        rewards, components = _rewards(_function(compiled), segment)
    except BaseException as error:  # sys.exit() too
        return {"error": _line(error)}
    means = {name: sum(values) / len(values) for name, values in components.items()}
    return {"rewards": rewards, "components": means}


def _function(compiled: Any) -> Callable[..., Any]:
    """The code is run anew for every segment: what it remembers of one changes no other's rewards."""
    names: dict[str, Any] = {"__builtins__": _builtins(), "__name__": "reward"}
    exec(compiled, names)
    function: Callable[..., Any] | None = names.get(FUNCTION)
    if function is None or not callable(function):
        raise Refused(f"there is no function {FUNCTION}")
    try:
        inspect.signature(function).bind(**dict.fromkeys(PARAMETERS))
    except (TypeError, ValueError):
        raise Refused(f"{FUNCTION} must take ({', '.join(PARAMETERS)})") from None
    return function


def _rewards(function: Callable[..., Any], segment: Mapping[str, Any]) -> Values:
    observations = [*segment["observations"], segment["last_observation"]]
    last = len(segment["actions"]) - 1
    rewards: list[float] = []
    components: dict[str, list[float]] = {}
    for t, action in enumerate(segment["actions"]):
        said = function(
            observation=observations[t],
            action=action,
            next_observation=observations[t + 1],
            terminated=bool(segment["terminated"]) and t == last,
        )
        if not isinstance(said, tuple) or len(said) != 2 or not isinstance(said[1], dict):
            raise Refused(f"{FUNCTION} returned {_kind(said)}: return (reward, {{'name': component, ...}})")
        rewards.append(_number("the reward", said[0]))
        if t == 0:
            components = {_name(name): [] for name in said[1]}
            if not 1 <= len(components) <= MAX_COMPONENTS:
                raise Refused(f"{len(components)} components: name 1 to {MAX_COMPONENTS}")
        if said[1].keys() != components.keys():
            raise Refused("the components have other names than at the step before: give all of them at every step")
        for name, value in said[1].items():
            components[name].append(_number(f"component {name}", value))
    return rewards, components


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused(f"{what} is {_kind(value)}, and no number")
    if not math.isfinite(value):
        raise Refused(f"{what} is {value}: it must be finite")
    return float(value)


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier() or len(name) > MAX_NAME:
        raise Refused(f"a component is called {str(name)[:MAX_NAME]!r}: use a word of letters, digits and _")
    if name in TAKEN:
        raise Refused(f"a component is called {name!r}, as something else is: choose another name")
    return name


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _line(error: BaseException) -> str:
    """What went wrong, and in which of the code's lines."""
    if isinstance(error, Refused):
        return str(error)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _FILE]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}"[:_MESSAGE_CHARACTERS] + where


def _builtins() -> dict[str, Any]:
    names = {name: value for name, value in vars(builtins).items() if name not in _LEFT_OUT}
    names["print"] = lambda *_, **__: None  # there is nobody to read it
    names["__import__"] = _import
    return names


def _import(name: str, *arguments: Any, **named: Any) -> Any:
    if name.partition(".")[0] not in MODULES:
        raise ImportError(f"{name} cannot be imported: a reward has {', '.join(MODULES[:-1])}")
    return builtins.__import__(name, *arguments, **named)


for _module in MODULES:  # before the sandbox closes: faster, and whatever they load is there
    builtins.__import__(_module)

ROLES = {"reward": serve_reward}
