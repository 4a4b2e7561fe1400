"""EnvPool's envs (Atari, MuJoCo, classic control and more, in C++): all of a group are stepped by one call, which holds
no lock of Python's while it works. The package is an extra; nothing else here imports it."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rollcall.actors.envs.plain_state import UnsupportedStateError
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.near_names import did_you_mean
from rollcall.cluster.messages.arrays import Array

PREFIX = "envpool:"
# The pool's arguments that have a setting of their own here.
_OURS = {
    **dict.fromkeys(("num_envs", "batch_size"), "actors.num_envs"),
    **dict.fromkeys(("stack_num", "frame_stack"), "env.frame_stack"),
    **dict.fromkeys(("seed", "env_seed"), "seed"),
    "max_episode_steps": "env.max_episode_steps",
    "episodic_life": "env.episodic_life",
    "reward_clip": "env.reward_clip",
}
# Families whose resets and steps take microseconds, and which draw random numbers in resets alone.
REPLAYABLE = ("classic_control", "mujoco.gym")
_NO_LIMIT = 2**31 - 1  # the longest episode that the pool can count
_REPLAYED_STEPS = 100_000  # of the longest episode that is gone through again
_LOG_STEPS = 1024  # of the actions' log: how often what is no longer needed is dropped from it


@dataclass(frozen=True)
class PoolTask:
    """What EnvPool knows under a name."""

    name: str  # with the prefix
    task: str
    family: str  # classic_control, atari, mujoco.gym, ...
    takes: frozenset[str]  # the arguments that there are
    stacks_as: str | None  # the one by which it stacks frames itself

    @property
    def has_lives(self) -> bool:
        return self.family == "atari"

    def make(self, num_envs: int, *, max_episode_steps: int | None = None, **settings: Any) -> PoolEnvs:
        """`settings` are EnvPool's own, and `frame_stack`."""
        frames = settings.pop("frame_stack", None)
        for key in settings:
            if key in _OURS:
                raise BadInput(f"env.kwargs.{key}: use {_OURS[key]}")
            if key not in self.takes:
                raise BadInput(f"env.kwargs.{key}: {self.name} does not take it{did_you_mean(key, self.takes)}")
        if frames is not None and self.stacks_as is not None:
            settings[self.stacks_as] = frames
        return PoolEnvs(self, num_envs, max_episode_steps, settings)


def find_pool_task(name: str) -> PoolTask:
    """`envpool:Pong-v5` -> what is known of it.

    Raises:
      BadInput: where EnvPool is not installed, or does not know the name.
    """
    task = name.removeprefix(PREFIX)
    registry = importlib.import_module("envpool.registration").registry
    if task not in registry.specs:
        raise BadInput(f"env {name!r} is not known to EnvPool{did_you_mean(task, registry.specs, mark=':')}")
    module, spec_class, _ = registry.specs[task]
    takes = frozenset(getattr(importlib.import_module(module), spec_class)._config_keys) | {"render_mode"}
    stacks_as = next((key for key in ("stack_num", "frame_stack") if key in takes), None)
    return PoolTask(name, task, module.removeprefix("envpool."), takes, stacks_as)


class PoolEnvs(VectorEnv[Any, Any, Any]):
    """Envs of EnvPool as a vector env whose ended envs are reset by whoever steps it (AutoresetMode.DISABLED).

    EnvPool's own way (an ended env is reset by its next step) is not used: it reports an episode that ends in its last
    allowed step as truncated even where the task itself ended, and truncation bootstraps where a termination must not.
    So the pool is given one step more than is allowed, and the limit is kept here.

    Arrays of `step` are the pool's own, made for that step; a reset of some envs writes their rows anew.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's

    def __init__(self, task: PoolTask, num_envs: int, limit: int | None, settings: Mapping[str, Any]) -> None:
        self.num_envs = num_envs
        self._task = task
        self._settings = {"num_threads": 1, **settings}
        self.render_mode = self._settings.get("render_mode")
        with _bounds_may_be_rounded():
            spec = importlib.import_module("envpool").make_spec(task.task, num_envs=num_envs, **self._settings)
            self.single_observation_space = spec.gymnasium_observation_space
            self.single_action_space = spec.gymnasium_action_space
            self.observation_space = batch_space(self.single_observation_space, num_envs)
            self.action_space = batch_space(self.single_action_space, num_envs)
        if getattr(spec.config, "max_num_players", 1) != 1:
            raise BadInput(f"env {task.name!r} is played by several at once: choose one for a single player")
        self._limit = limit or int(spec.config.max_episode_steps)
        self._pool: Any = None  # made by a reset: EnvPool takes seeds when it is made, and never again
        self._seeds = np.zeros(num_envs, np.int64)
        self._resets = np.zeros(num_envs, np.int64)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._actions: list[Array] = []  # [B, ...] each: at least those of the episodes under way
        self._shown: tuple[Any, dict[str, Any]] = (None, {})

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """All envs, or those of `options["reset_mask"]` (bool [B]). Seeds: one per env, or one that is counted up."""
        if seed is not None or self._pool is None:
            self._make(self._seeds_from(seed))
        mask = (options or {}).get("reset_mask")
        if mask is None or self._shown[0] is None:
            return self._reset(self._pool.all_env_ids)
        ids = np.flatnonzero(mask).astype(np.int32)
        observations, infos = self._shown
        if len(ids):
            some = self._pool.reset(ids)
            _put_rows(observations, some[0], ids)
            _put_rows(infos, some[1], ids)
            self._count_resets(ids)
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        self._log(actions)
        observations, rewards, terminated, _, infos = self._pool.step(actions)
        self._elapsed += 1
        infos.pop("players", None)
        self._shown = observations, infos
        return observations, rewards, terminated, self._elapsed >= self._limit, infos

    def render(self) -> Any:
        """RGB frames, [B, height, width, 3]."""
        return self._pool.render(self._pool.all_env_ids)

    def close(self, **_: Any) -> None:
        self._pool = None  # its threads end with it

    def replayable_state(self) -> dict[str, Any]:
        """From what these envs came to be as they are: their seeds, how often each was reset, and what was done in the
        episodes under way. (EnvPool neither gives its envs' state nor takes one.)

        Raises:
          UnsupportedStateError: where to go through it again may take too long, or end elsewhere.
        """
        longest = int(self._elapsed.max())
        if self._pool is None or self._task.family not in REPLAYABLE or longest > _REPLAYED_STEPS:
            raise UnsupportedStateError(f"{self._task.name} in EnvPool")
        under_way = self._actions[len(self._actions) - longest :]
        return {
            "seeds": self._seeds.copy(),
            "resets": self._resets.copy(),
            "elapsed": self._elapsed.copy(),
            "actions": np.stack(under_way) if under_way else np.zeros((0, self.num_envs)),
        }

    def replay(self, state: Mapping[str, Any]) -> None:
        """Goes to where another of the same envs was."""
        self._make(state["seeds"])
        resets, elapsed, actions = state["resets"], state["elapsed"], state["actions"]
        for done in range(int(resets.max())):
            self._pool.reset(np.flatnonzero(resets > done).astype(np.int32))
        for left in range(len(actions), 0, -1):
            ids = np.flatnonzero(elapsed >= left).astype(np.int32)
            self._pool.step(actions[len(actions) - left][ids], ids)
        self._resets, self._elapsed = resets.copy(), elapsed.copy()
        self._actions = list(actions)

    def _seeds_from(self, seed: Any) -> Array:
        if seed is None:
            seed = int(self.np_random.integers(2**31 - self.num_envs))
        seeds = np.asarray(seed, np.int64)
        return seeds + np.arange(self.num_envs) if seeds.ndim == 0 else seeds

    def _make(self, seeds: Array) -> None:
        self._seeds = np.array(seeds, np.int64)
        self._resets[:] = 0
        self._pool = None  # the old one first: a game of Atari is some megabytes
        self._pool = importlib.import_module("envpool").make(
            self._task.task,
            env_type="gymnasium",
            num_envs=self.num_envs,
            seed=self._seeds.tolist(),
            max_episode_steps=min(self._limit + 1, _NO_LIMIT),
            **self._settings,
        )
        with _bounds_may_be_rounded():
            _ = self._pool.observation_space  # which it would make when it is first asked for an observation
        self._shown = (None, {})

    def _reset(self, ids: Array) -> tuple[Any, dict[str, Any]]:
        observations, infos = self._pool.reset(ids)
        infos.pop("players", None)
        self._shown = observations, infos
        self._count_resets(ids)
        return observations, infos

    def _count_resets(self, ids: Array) -> None:
        self._resets[ids] += 1
        self._elapsed[ids] = 0

    def _log(self, actions: Any) -> None:
        if self._task.family not in REPLAYABLE:
            return
        self._actions.append(np.array(actions))
        if len(self._actions) % _LOG_STEPS == 0:
            del self._actions[: len(self._actions) - 1 - min(int(self._elapsed.max()), _REPLAYED_STEPS)]


@contextlib.contextmanager
def _bounds_may_be_rounded() -> Iterator[None]:
    """gymnasium warns of bounds that float32 rounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _put_rows(into: Any, rows: Any, ids: Array) -> None:
    """Rows of [B, ...] arrays, nested in the same way."""
    if isinstance(into, Mapping):
        for name, value in into.items():
            _put_rows(value, rows[name], ids)
    else:
        into[ids] = rows


class PoolEnv(gym.Env[Any, Any]):
    """One env of EnvPool as a plain gymnasium env: the same as one of many with its seed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - gymnasium's own way

    def __init__(self, envs: PoolEnvs) -> None:
        assert envs.num_envs == 1
        self._envs = envs
        self.render_mode = envs.render_mode
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observations, infos = self._envs.reset(seed=None if seed is None else [seed])
        return _first(observations), _first(infos)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self._envs.step(np.array([action]))
        return _first(observations), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _first(infos)

    def render(self) -> Any:
        return None if self.render_mode is None else self._envs.render()[0]

    def close(self) -> None:
        self._envs.close()


def _first(batch: Any) -> Any:
    return {name: _first(value) for name, value in batch.items()} if isinstance(batch, Mapping) else batch[0]
