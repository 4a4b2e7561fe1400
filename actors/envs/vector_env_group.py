"""Groups around gymnasium's vector envs: numpy-native ones, where they are registered, and AsyncVectorEnv. They differ
in when they reset an ended env and where they put its last observation; out of here comes one kind of step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rollcall.actors.envs.action_masks import MASK_KEYS, MASK_METHOD
from rollcall.actors.envs.contract import ContractError, described
from rollcall.actors.envs.observations import (
    ObservationReader,
    check_spaces,
    is_finite,
    observed_space,
    refuse_non_finite,
)
from rollcall.actors.envs.vector import NO_ENVS, Reset, Restarts, Step, env_seed, no_flags, usable_mask
from rollcall.cluster.messages.arrays import Array

VectorEnvs = VectorEnv[Any, Any, Any]
_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(bool)
Seeding = Literal["one", "list", "array"]  # what the vector env's reset takes: one number, or one per env


class VectorEnvGroup:
    """An EnvGroup over a vector env, of any autoreset mode. A vector env that raises is built anew as a whole."""

    def __init__(
        self,
        factory: Callable[[], VectorEnvs],
        *,
        seed: int,
        name: str = "env",
        seeding: Seeding | None = None,
        counts_lives: bool = False,
        max_restarts: int = 0,
    ) -> None:
        """With `counts_lives` losing one of `info["lives"]` ends an episode for the learner, and the game goes on."""
        self.name = name
        self.restarts = Restarts(name, max_restarts)
        self._factory = factory
        self._env = factory()
        check_spaces(name, self._env.single_observation_space, self._env.single_action_space)
        self.num_envs = self._env.num_envs
        self.observation_space = observed_space(self._env.single_observation_space)
        self.action_space = self._env.single_action_space
        self._reader = ObservationReader(self._env.single_observation_space, self.action_space)
        method = getattr(self._env, MASK_METHOD, None)
        self._mask_method = method if callable(method) and self._reader.masks_actions else None
        self._mode = AutoresetMode(self._env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self._seeding = seeding or ("list" if isinstance(self._env, (SyncVectorEnv, AsyncVectorEnv)) else "one")
        self._seed = seed
        self._resets = 0
        self._steps = 0
        self._dead: Array | None = None  # bool [B]: envs that spend their next step on a reset; None: no env does
        self._counts_lives = counts_lives
        self._lives: Array | None = None
        self._one_per_env = (self.num_envs,)
        self._none = no_flags(self.num_envs)
        self._all = ~self._none

    def reset(self, seeds: Sequence[int | None] | None = None) -> Reset:
        self._resets += 1
        try:
            observations, infos = self._reset(seeds, "reset", self._resets)
            return self._shown(observations, infos)
        except Exception as error:
            return self._revive(error)

    def step(self, actions: Array, active: Array | None = None) -> Step:
        self._steps += 1
        try:
            # A copy of the actions: an env may keep them, and change them.
            observations, rewards, terminated, truncated, infos = self._step(np.array(actions))
            rewards = self._one_each("rewards", rewards, _FLOAT32)
            terminated = self._one_each("terminated", terminated, _BOOL)
            truncated = self._one_each("truncated", truncated, _BOOL)
            ended = terminated | truncated
            some_ended = np.count_nonzero(ended) > 0
            finals = None
            if some_ended and self._mode is not AutoresetMode.NEXT_STEP:
                finals = self._final_observations(observations, infos, ended)
            if some_ended and self._mode is AutoresetMode.DISABLED:
                observations, infos = self._env.reset(options={"reset_mask": ended.copy()})
            named = self._reader.read(observations, self.num_envs)
            action_mask = self._given_mask(observations, infos)
        except Exception as error:
            return self._start_over(error)
        dead, starts = self._dead, self._none
        if dead is not None:
            rewards = np.where(dead, np.float32(0.0), rewards)
            starts = dead
        mask = self._all if dead is None else ~dead
        if some_ended and self._mode is not AutoresetMode.NEXT_STEP:
            starts = ended
        self._dead = ended if some_ended and self._mode is AutoresetMode.NEXT_STEP else None
        if active is not None:
            mask, terminated, truncated = mask & active, terminated & active, truncated & active
            rewards = np.where(active, rewards, np.float32(0.0))
        if not is_finite(rewards):
            refuse_non_finite(self.name, "reward", rewards, step=self._steps)
        self._reader.check(self.name, named, step=self._steps)
        step = Step(
            observations=named,
            action_mask=self._usable(action_mask, infos, active),
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            mask=mask,
            episode_starts=starts,
            final_envs=NO_ENVS,
            final_observations={},
        )
        if some_ended:
            self._put_finals(step, finals, np.flatnonzero(ended), active)
        if self._counts_lives:
            self._put_lives(step, infos, ended)
        return step

    def doing(self) -> str:
        return f"{self.name}, {self.num_envs} envs at once, step {self._steps}"

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._env.close()

    def _step(self, actions: Array) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return self._env.step(actions)

    def _reset(self, seeds: Sequence[int | None] | None, *names: str | int) -> tuple[Any, dict[str, Any]]:
        """Resets all, with the given seeds or with those derived from the group's seed and `names`."""
        if seeds is None:
            seeds = [env_seed(self._seed, *names, i) for i in range(self.num_envs)]
        self._dead = None
        self._lives = None
        if seeds[0] is None:
            return self._env.reset()
        if self._seeding == "one":
            return self._env.reset(seed=seeds[0])
        if self._seeding == "list":
            return self._env.reset(seed=list(seeds))  # type: ignore[arg-type]
        return self._env.reset(seed=np.array(seeds))  # type: ignore[arg-type]

    def _one_each(self, field: str, value: Any, dtype: np.dtype[Any]) -> Array:
        """[B]: one number of a dtype per env."""
        if type(value) is np.ndarray and value.dtype is dtype and value.shape == self._one_per_env:
            return value
        array = np.asarray(value)
        if array.shape != self._one_per_env or array.dtype.kind not in "fiub":
            raise ContractError(f"its {field} is {described(value)}: return an array of {self.num_envs} numbers")
        if dtype is _BOOL and not np.isin(array, (0, 1)).all():
            raise ContractError(f"its {field} holds more than 0 and 1: return an array of bools")
        return array.astype(dtype)

    def _revive(self, error: Exception) -> Reset:
        """What a new vector env shows in place of one that raised, reset with seeds of its own."""
        while True:
            self.restarts.book("the vector env", error, step=self._steps)
            self._abandon()
            try:
                self._env = self._factory()
                return self._shown(*self._reset(None, "restart", self.restarts.total))
            except Exception as again:
                error = again

    def _abandon(self) -> None:
        """Closes what may never answer again."""
        with contextlib.suppress(Exception):
            if isinstance(self._env, AsyncVectorEnv):
                self._env.close(terminate=True)
            else:
                self._env.close()

    def _start_over(self, error: Exception) -> Step:
        """The step of envs that all raised, as far as anybody can tell: every episode broke off before it."""
        in_episode = self._all if self._dead is None else ~self._dead
        shown = self._revive(error)
        return Step(
            observations=shown.observations,
            action_mask=shown.action_mask,
            rewards=np.zeros(self.num_envs, np.float32),
            terminated=self._none,
            truncated=self._none,
            mask=self._none,
            episode_starts=self._all,
            final_envs=NO_ENVS,
            final_observations={},
            lost=tuple(int(i) for i in np.flatnonzero(in_episode)),
        )

    def _shown(self, observations: Any, infos: dict[str, Any]) -> Reset:
        named = self._reader.read(observations, self.num_envs)
        self._reader.check(self.name, named, step=self._steps)
        if self._counts_lives:
            self._lives = np.array(infos["lives"])
        return Reset(named, self._usable(self._given_mask(observations, infos), infos, None))

    def _given_mask(self, observations: Any, infos: dict[str, Any]) -> Array | None:
        """bool [B, num_actions], as the envs gave it."""
        mask = self._reader.mask_of(observations, infos, self.num_envs) if self._reader.has_mask or infos else None
        if mask is None and self._mask_method is not None:
            mask = self._reader.mask(self._mask_method(), self.num_envs)
        return mask

    def _usable(self, mask: Array | None, infos: dict[str, Any], active: Array | None) -> Array | None:
        if mask is None:
            return None
        unused = self._none if self._dead is None else self._dead
        if active is not None:
            unused = unused | ~active
        # Which envs said something about their actions.
        given = next((infos[f"_{key}"] for key in MASK_KEYS if f"_{key}" in infos), None)
        return usable_mask(self.name, mask, unused if given is None else unused | ~given, step=self._steps)

    def _final_observations(self, observations: Any, infos: dict[str, Any], ended: Array) -> dict[str, Array]:
        """Copies [N, ...] for the ended envs, of an env that shows something else next."""
        if self._mode is AutoresetMode.DISABLED:
            return {name: array[ended] for name, array in self._reader.read(observations, self.num_envs).items()}
        final = infos.get("final_obs")
        if final is None:
            raise ContractError("an episode ended in same-step mode and its infos hold no final_obs: put it there")
        if isinstance(final, np.ndarray) and final.dtype == object:  # gymnasium's: one observation per env, or None
            finals = [self._reader.read(final[i]) for i in np.flatnonzero(ended)]
            return {name: np.stack([item[name] for item in finals]) for name in finals[0]}
        return {name: array[ended] for name, array in self._reader.read(final, self.num_envs).items()}

    def _put_finals(self, step: Step, finals: dict[str, Array] | None, envs: Array, active: Array | None) -> None:
        if finals is None:  # they are what the envs show still, which has been looked at
            finals = {name: array[envs] for name, array in step.observations.items()}
        else:
            self._reader.check(self.name, finals, step=self._steps, rows=envs)
        if active is not None:
            kept = active[envs]
            envs, finals = envs[kept], {name: array[kept] for name, array in finals.items()}
        step.final_envs, step.final_observations = envs, finals

    def _put_lives(self, step: Step, infos: dict[str, Any], ended: Array) -> None:
        """A lost life is a termination whose next episode goes on from the same screen."""
        lives = np.array(infos["lives"])
        assert self._lives is not None
        lost = (lives < self._lives) & ~ended & step.mask
        self._lives = lives
        if not lost.any():
            return
        step.life_lost = lost
        step.terminated = step.terminated | lost
        step.episode_starts = step.episode_starts | lost
        envs = np.concatenate([step.final_envs, np.flatnonzero(lost)])
        order = np.argsort(envs)
        step.final_observations = {
            name: np.concatenate([step.final_observations.get(name, array[:0]), array[lost]])[order]
            for name, array in step.observations.items()
        }
        step.final_envs = envs[order]
