"""The environment of a run: its settings, one env of it, or a group of them stepped together in the fastest way that
gives the same experience."""

from __future__ import annotations

import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FrameStackObservation, TransformObservation

from rollcall.actors.envs.async_envs import AsyncEnvs
from rollcall.actors.envs.atari import AtariEnv, make_atari
from rollcall.actors.envs.checked_env import CheckedEnv
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.global_randomness import OwnRandomness, with_own_randomness
from rollcall.actors.envs.local_group import LocalGroup
from rollcall.actors.envs.observations import Space, check_spaces, observed_space
from rollcall.actors.envs.sources import Env, EnvSource, VectorEnvs, build, find_env
from rollcall.actors.envs.vector import EnvGroup, env_seed
from rollcall.actors.envs.vector_env_group import VectorEnvGroup
from rollcall.cluster.cores import usable_cores
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.given import named_in, shown
from rollcall.cluster.messages.arrays import Array

# From this cost of one env's step on, processes of their own are worth their two messages per step.
ASYNC_PAYS_FROM_S = 0.5e-3
_MEASURED_STEPS = 8

Vectorization = Literal["native", "sync", "async"]
_AUTORESET = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP}


def make_env(config: EnvConfig, *, render_mode: str | None = None, seed: int = 0) -> Env:
    """One env, with its wrappers. What it draws from global generators while it is made derives from `seed`, and
    later from the seed of its resets.

    Raises:
      BadInput: in one line, where it cannot be made.
    """
    source = find_env(config.id)
    if config.is_atari:
        return AtariEnv(_atari_maker(config, source)(1), render_mode)
    kwargs = copy.deepcopy(config.kwargs)  # an env may change what it is given
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    if _stacks_itself(config, source):
        kwargs["frame_stack"] = config.frame_stack
    limit = config.fixed_episode_steps or config.max_episode_steps
    env: Env = OwnRandomness(partial(source.make, limit, **kwargs), seed)
    for name in ("observation_space", "action_space"):
        if getattr(env.unwrapped, name, None) is None:
            raise BadInput(f"env {config.id!r} has no {name}: set self.{name} in its __init__, to a gymnasium space")
    if config.fixed_episode_steps is not None:
        env = _Unending(env)
    if config.frame_stack is not None and config.frame_stack > 1 and not _stacks_itself(config, source):
        check_spaces(config.id, env.observation_space, env.action_space)
        env = FrameStackObservation(CheckedEnv(env), config.frame_stack)  # it keeps what it is shown
    return env


def spaces_of(config: EnvConfig) -> tuple[Space, Space]:
    """The (observation, action) spaces of one env, as the policy needs them: without an action mask.

    Raises:
      BadInput: where the env cannot be made, or shows or takes what no policy here can deal with.
    """
    env = make_env(config)
    try:
        check_spaces(config.id, env.observation_space, env.action_space)
        return observed_space(env.observation_space), env.action_space
    finally:
        env.close()


def make_vector_env(
    config: EnvConfig, num_envs: int, *, seed: int = 0, max_restarts: int = 0, step_timeout_s: float = 60.0
) -> EnvGroup:
    """A group of `num_envs` envs whose every random stream derives from `seed`, not reset yet.

    `max_restarts`: how many envs that raise are started anew. `step_timeout_s` holds where envs have processes of
    their own; nothing can be done about one that hangs in this process.

    Raises:
      BadInput: in one line, where the envs cannot be made.
    """
    source = find_env(config.id)
    chosen = _vectorization(config, source, num_envs)
    factory = _SeededEnvs(partial(make_env, config), seed)
    group: EnvGroup
    if chosen == "sync":
        next_step = config.autoreset == "next_step"
        group = LocalGroup(factory, num_envs, seed=seed, name=config.id, next_step=next_step, max_restarts=max_restarts)
    elif chosen == "async":
        mode = _AUTORESET.get(config.autoreset) or AutoresetMode.SAME_STEP
        make = partial(_make_async, factory, num_envs, autoreset_mode=mode, timeout_s=step_timeout_s)
        group = VectorEnvGroup(make, seed=seed, name=config.id, max_restarts=max_restarts)
    elif config.is_atari:
        make_games = partial(_atari_maker(config, source), num_envs)
        group = VectorEnvGroup(
            make_games,
            seed=seed,
            name=config.id,
            seeding="array",
            counts_lives=config.episodic_life,
            max_restarts=max_restarts,
        )
    else:
        natives = _SeededEnvs(partial(_make_native, config, source, num_envs), seed)
        group = VectorEnvGroup(
            natives,
            seed=seed,
            name=config.id,
            seeding=None if source.pool is None else "array",
            counts_lives=config.episodic_life,
            max_restarts=max_restarts,
        )
    return group


def _stacks_itself(config: EnvConfig, source: EnvSource) -> bool:
    return config.frame_stack is not None and source.pool is not None and source.pool.stacks_as is not None


def _atari_maker(config: EnvConfig, source: EnvSource) -> Callable[[int], VectorEnvs]:
    if source.game is None:
        raise BadInput(f"env.atari=true: {config.id!r} is no id of ALE/, as ALE/Pong-v5 is: leave it out")
    # The id's own settings hold (v5: an action is repeated with probability 0.25); its frames are skipped here.
    spec = {k: v for k, v in gym.registry[source.name].kwargs.items() if k not in ("game", "frameskip")}
    make = partial(
        make_atari,
        source.game,
        frame_stack=config.frame_stack,
        max_episode_steps=config.max_episode_steps,
        autoreset=_AUTORESET.get(config.autoreset) or AutoresetMode.NEXT_STEP,
        kwargs=spec | copy.deepcopy(config.kwargs),
    )
    return lambda num_envs: build(config.id, make, {"num_envs": num_envs}, entry_point="ale_py")


class _SeededEnvs:
    """Makes one env after another, each with a seed of its own: an env that replaces another is a new one."""

    def __init__(self, make: Callable[..., Any], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._made = 0

    def __call__(self) -> Any:
        return self.next()()

    def next(self) -> Callable[[], Any]:
        """What makes the next env, here or in another process."""
        self._made += 1
        return partial(self._make, seed=env_seed(self._seed, "made", self._made))


def _make_async(envs: _SeededEnvs, num_envs: int, *, autoreset_mode: AutoresetMode, timeout_s: float) -> AsyncEnvs:
    return AsyncEnvs([envs.next() for _ in range(num_envs)], autoreset_mode=autoreset_mode, timeout_s=timeout_s)


def _make_native(config: EnvConfig, source: EnvSource, num_envs: int, *, seed: int = 0) -> VectorEnvs:
    assert source.make_native is not None
    more = {} if config.max_episode_steps is None else {"max_episode_steps": config.max_episode_steps}
    if _stacks_itself(config, source):
        more["frame_stack"] = config.frame_stack  # type: ignore[assignment]
    make = partial(source.make_native, num_envs, **copy.deepcopy(config.kwargs), **more)
    return with_own_randomness(make, seed)


def _vectorization(config: EnvConfig, source: EnvSource, num_envs: int) -> Vectorization:
    """How the envs are stepped. Sync and async give the same experience, so what was measured changes no result."""
    wanted = config.vectorization
    lives = config.is_atari or (source.pool is not None and source.pool.has_lives)
    if config.episodic_life and not lives:
        raise BadInput(f"env.episodic_life=true: {config.id!r} is no Atari game: leave it out")
    if config.fixed_episode_steps is not None and (config.is_atari or source.pool is not None):
        what = "a game of Atari" if config.is_atari else "an env of EnvPool"
        raise BadInput(f"env.fixed_episode_steps: {what} cannot go on after its end: leave it out")
    if config.episodic_life and wanted in ("sync", "async"):
        raise BadInput(f"env.vectorization={wanted}: lives are counted where games are stepped natively: use auto")
    if config.is_atari:
        if wanted in ("sync", "async"):
            raise BadInput(f"env.vectorization={wanted}: Atari games are stepped natively: use auto, or atari: false")
        return "native"
    obstacle = _no_native(config, source, num_envs)
    if wanted == "native" and obstacle:
        raise BadInput(f"env.vectorization=native: {obstacle}: use auto or sync")
    if (given := named_in(config.id)) is not None and wanted == "async":
        text = f"no process can import the object {shown(given)}: use sync or module:name"
        raise BadInput(f"env.vectorization=async: {text}")
    if wanted != "auto":
        return wanted
    if obstacle is None:
        return "native"
    if given is not None or num_envs == 1 or usable_cores() == 1:
        return "sync"
    return "async" if _step_cost_s(config) > ASYNC_PAYS_FROM_S else "sync"


def _no_native(config: EnvConfig, source: EnvSource, num_envs: int) -> str | None:
    """Why the env's own vector form cannot be used, or None."""
    if source.make_native is None:
        return f"{config.id!r} has no vector form of its own"
    if config.frame_stack is not None and config.frame_stack > 1 and not _stacks_itself(config, source):
        return "frames are stacked env by env"
    if config.fixed_episode_steps is not None:
        return "terminations are ignored env by env"
    if config.autoreset == "auto":
        return None
    env = _make_native(config, source, num_envs)
    mode = env.metadata.get("autoreset_mode")
    env.close()
    if mode is AutoresetMode.DISABLED:
        mode = AutoresetMode.SAME_STEP  # its group resets it at once
    return (
        None
        if mode is _AUTORESET.get(config.autoreset)
        else f"{config.id!r} resets in its own way, not {config.autoreset}"
    )


def _step_cost_s(config: EnvConfig) -> float:
    """Seconds that one env's step takes here: the median of a few with random actions."""
    env = make_env(config)
    costs: list[float] = []
    try:
        env.action_space.seed(0)
        env.reset(seed=0)
        for _ in range(_MEASURED_STEPS):
            action = env.action_space.sample()
            began = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            costs.append(time.perf_counter() - began)
            if terminated or truncated:
                env.reset()
    except Exception:
        # A random action may be forbidden; an env that raises otherwise does so again, where it is reported.
        return statistics.median(costs) if costs else 0.0
    finally:
        env.close()
    return statistics.median(costs)


class _Unending(gym.Wrapper[Any, Any, Any, Any]):
    """An env whose states of failure are states like others."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        # Classic control warns of steps after the end, once per process: here they are meant.
        warnings.filterwarnings("ignore", message=".*calling 'step\\(\\)' even though.*")

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, _, truncated, info = self.env.step(action)
        return observation, reward, False, truncated, info


# Environments that recipes use.

_POSITIONS = (0, 2)  # of the cart and of the pole; the other two are velocities


def cartpole_masked(render_mode: str | None = None, **kwargs: Any) -> Env:
    """CartPole-v1 with the velocities hidden: the classic partially observable task, which asks for a memory."""
    env = gym.make("CartPole-v1", render_mode=render_mode, disable_env_checker=True, **kwargs)
    return TransformObservation(env, lambda state: state[list(_POSITIONS)], _positions_space())


def _positions_space() -> gym.spaces.Box:
    high = np.array([4.8, 24 * 2 * math.pi / 360], np.float32)
    return gym.spaces.Box(-high, high, dtype=np.float32)


class _MaskedCartPoles(CartPoleVectorEnv):
    """The same for many at once."""

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self.single_observation_space = _positions_space()
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)

    def step(self, action: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        observations, rewards, terminated, truncated, info = super().step(action)
        return np.ascontiguousarray(observations[:, _POSITIONS]), rewards, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        observations, info = super().reset(seed=seed, options=options)
        return np.ascontiguousarray(observations[:, _POSITIONS]), info


cartpole_masked.vector_entry_point = _MaskedCartPoles  # type: ignore[attr-defined]
