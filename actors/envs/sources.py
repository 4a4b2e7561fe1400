"""From what a user names as an environment to functions that make it. Everything that can be wrong with the name, the
packages behind it or its arguments is said here, in one line."""

from __future__ import annotations

import errno
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from rollcall.actors.envs.minigrid import make_grid
from rollcall.actors.envs.named_tuples import with_named_tuples
from rollcall.actors.envs.pool import PREFIX, PoolEnv, PoolTask, find_pool_task
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.import_path import import_module, import_object
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.cluster.inputs.user_code import user_line_of

_log = logging.getLogger(__name__)

Env = gym.Env[Any, Any]
VectorEnvs = VectorEnv[Any, Any, Any]

# Where an env's package is missing: the start of its entry point -> the extra that brings it.
_EXTRAS = {
    "gymnasium.envs.mujoco": "mujoco",
    "ale_py": "atari",
    "gymnasium.envs.box2d": "box2d",
    "gymnasium.envs.classic_control": "classic-control",
    "gymnasium.envs.toy_text": "toy-text",
}
# Of Rollcall's own; the others are gymnasium's.
_SHIPPED_EXTRAS = ("mujoco", "atari", "minatar", "minigrid", "box2d", "envpool")
# Who registers envs only when asked: the start of their ids -> package, extra, and how to ask.
_REGISTRARS: Mapping[str, tuple[str, str, Callable[[], None]]] = {
    "ALE/": ("ale_py", "atari", lambda: gym.register_envs(importlib.import_module("ale_py"))),
    "MinAtar/": ("minatar", "minatar", lambda: _register_minatar()),
    "MiniGrid-": ("minigrid", "minigrid", lambda: gym.register_envs(importlib.import_module("minigrid"))),
}
_mujoco_said: set[str] = set()


@dataclass(frozen=True)
class EnvSource:
    """How to make an environment, one or many at once. The first argument of `make` is the limit of an episode's steps,
    or None for the env's own; keyword arguments are the env's."""

    name: str
    make: Callable[..., Env]
    make_native: Callable[..., VectorEnvs] | None = None  # (num_envs=..., ...): numpy-native, where there is one
    game: str | None = None  # of the Arcade Learning Environment: its ROM
    pool: PoolTask | None = None  # of EnvPool


def find_env(name: str) -> EnvSource:
    """What `name` stands for: a gymnasium id, `module:id` that registers one, `module:function`, or `envpool:id`.

    Raises:
      BadInput: in one line, with what to do.
    """
    if name.startswith(PREFIX):
        return _pooled(name)
    for start, (package, extra, register) in _REGISTRARS.items():
        if name.startswith(start):
            _need_package(package, name, extra)
            register()
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        module = import_module(module_name)
        if attribute not in gym.registry or hasattr(module, attribute):
            return _imported(name)
        name = attribute
    spec = gym.registry.get(name)
    if spec is None:
        latest = _latest_version(name)
        hint = f": did you mean {latest}?" if latest else did_you_mean(name, gym.registry, mark=":")
        raise BadInput(f"env {name!r} is not registered with gymnasium{hint or ': give an id or module:function'}")
    native = spec.vector_entry_point is not None and not spec.additional_wrappers
    return EnvSource(
        name=name,
        make=lambda limit, **kwargs: _make_registered(spec, limit, kwargs),
        make_native=(lambda num_envs, **kwargs: _make_native(spec, num_envs, kwargs)) if native else None,
        game=spec.kwargs.get("game") if name.startswith("ALE/") else None,
    )


def build(what: str, make: Callable[..., Any], kwargs: Mapping[str, Any], *, entry_point: str = "") -> Any:
    """make(**kwargs), with everything that goes wrong said in one line as BadInput."""
    try:
        return make(**kwargs)
    except BadInput:
        raise
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        extra = next((extra for start, extra in _EXTRAS.items() if entry_point.startswith(start)), None)
        if extra is not None:
            raise BadInput(f"env {what!r} needs a package that is not installed: {_remedy(extra)}") from None
        raise BadInput(f"env {what!r} needs a package that is not installed ({_line(error)}): install it") from None
    except Exception as error:
        place = user_line_of(error)
        if isinstance(error, TypeError) and not place:
            raise BadInput(f"env {what!r} does not take these arguments ({_line(error)}): fix env.kwargs") from error
        where = f"{place}: " if place else ""
        raise BadInput(f"env {what!r} cannot be made ({where}{_line(error)}): {_remedy_of(error)}") from error


def _remedy_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            "a port serves one env, and a run makes several (actors.num_envs, and those of evaluation): let each take "
            "a free one, as binding to port 0 does, or set actors.num_envs=1 and eval.episodes=0"
        )
    if isinstance(error, AssertionError) and "daemonic processes" in str(error):
        return "it starts processes, which an env in a process of its own cannot: set env.vectorization=sync"
    return "fix it, or env.kwargs"


def _remedy(extra: str) -> str:
    owner = "rollcall-rl" if extra in _SHIPPED_EXTRAS else "gymnasium"
    return f"pip install '{owner}[{extra}]'"


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _need_package(package: str, env: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise BadInput(f"env {env!r} needs a package that is not installed: {_remedy(extra)}")


def _register_minatar() -> None:
    """It warns of a missing seaborn, which only its pictures need, and would warn of being asked twice."""
    if "MinAtar/Breakout-v1" in gym.registry:
        return
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        importlib.import_module("minatar.gym").register_envs()
    finally:
        logging.disable(before)


def _latest_version(name: str) -> str | None:
    """The newest registered version of an id whose version is wrong or left out."""
    stem = name.rpartition("-v")[0] or name
    versions = [known for known in gym.registry if known.rpartition("-v")[0].lower() == stem.lower()]
    return max(versions, key=lambda known: gym.registry[known].version or 0, default=None)


def _make_registered(spec: Any, limit: int | None, kwargs: Mapping[str, Any]) -> Env:
    def make(**kwargs: Any) -> Env:
        if str(spec.entry_point).startswith("minigrid."):
            return make_grid(spec.id, made, kwargs)
        return made(**kwargs)

    def made(**kwargs: Any) -> Env:
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
            _log_mujoco_warnings()
        with warnings.catch_warnings():  # gymnasium warns of old versions; the id is the user's choice
            warnings.simplefilter("ignore", DeprecationWarning)
            # Its checker warns at every step about what works all the same, and costs more than CartPole's step.
            return gym.make(spec.id, max_episode_steps=limit, disable_env_checker=True, **kwargs)

    return with_named_tuples(build(spec.id, make, kwargs, entry_point=str(spec.entry_point)))


def _log_mujoco_warnings() -> None:
    """MuJoCo would write them to a file in the user's working directory, once per env."""
    import mujoco

    def log(text: str) -> None:
        if text not in _mujoco_said:
            _mujoco_said.add(text)
            _log.warning("MuJoCo: %s", text)

    mujoco.set_mju_user_warning(log)


def _make_native(spec: Any, num_envs: int, kwargs: Mapping[str, Any]) -> VectorEnvs:
    def make(**kwargs: Any) -> VectorEnvs:
        return gym.make_vec(spec.id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)

    envs: VectorEnvs = build(spec.id, make, kwargs, entry_point=str(spec.vector_entry_point))
    return envs


def _pooled(name: str) -> EnvSource:
    _need_package("envpool", name, "envpool")
    task = find_pool_task(name)

    def make_native(num_envs: int, **kwargs: Any) -> VectorEnvs:
        envs: VectorEnvs = build(name, task.make, {"num_envs": num_envs, **kwargs})
        return envs

    def make(limit: int | None, **kwargs: Any) -> Env:
        return PoolEnv(build(name, task.make, {"num_envs": 1, "max_episode_steps": limit, **kwargs}))

    return EnvSource(name=name, make=make, make_native=make_native, pool=task)


def _imported(path: str) -> EnvSource:
    """`module:function`. A function that has the attribute `vector_entry_point` is numpy-native with it."""
    function = import_object(path)
    if not callable(function):
        raise BadInput(f"env {path!r} is a {type(function).__name__}: name a function that returns a gymnasium.Env")

    def make(limit: int | None, **kwargs: Any) -> Env:
        if "render_mode" in kwargs and not _takes(function, "render_mode"):
            del kwargs["render_mode"]
        env = build(path, function, kwargs)
        if not isinstance(env, gym.Env):
            raise BadInput(f"env {path!r} returned a {type(env).__name__}: it must return a gymnasium.Env")
        return with_named_tuples(env if limit is None else gym.wrappers.TimeLimit(env, limit))

    native = getattr(function, "vector_entry_point", None)

    def make_native(num_envs: int, **kwargs: Any) -> VectorEnvs:
        envs: VectorEnvs = build(path, native, {"num_envs": num_envs, **kwargs})  # type: ignore[arg-type]
        return envs

    return EnvSource(name=path, make=make, make_native=make_native if native is not None else None)


def _takes(function: Callable[..., Any], keyword: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(item.name == keyword or item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters)
