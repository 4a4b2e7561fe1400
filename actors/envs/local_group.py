"""Envs stepped one after another in this process: the plain case. Each env is known, so the one that raises is the one
that is started anew. Faster than gymnasium's SyncVectorEnv, which copies and checks more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.actors.envs.action_masks import mask_method, tell_unread
from rollcall.actors.envs.contract import FLAGS, NUMBERS, as_flag, as_number, read_reset
from rollcall.actors.envs.observations import ObservationReader, check_spaces, observed_space, refuse_non_finite
from rollcall.actors.envs.vector import NO_ENVS, Reset, Restarts, Step, env_seed, usable_mask
from rollcall.cluster.messages.records import Array

Env = gym.Env[Any, Any]


class LocalGroup:
    """An EnvGroup over single envs. `next_step` resets an ended env at its next step, as gymnasium's NEXT_STEP mode
    does, and not at once (SAME_STEP). After masking both give the same transitions."""

    def __init__(
        self,
        factory: Callable[[], Env],
        num_envs: int,
        *,
        seed: int,
        name: str = "env",
        next_step: bool = False,
        max_restarts: int = 0,
    ) -> None:
        self.name = name
        self.num_envs = num_envs
        self.restarts = Restarts(name, max_restarts)
        self._factory = factory
        self._envs: list[Env] = []
        try:
            for _ in range(num_envs):
                self._envs.append(factory())
        except BaseException:
            self.close()  # those that were made: they may hold what the others want
            raise
        check_spaces(name, self._envs[0].observation_space, self._envs[0].action_space)
        self.observation_space = observed_space(self._envs[0].observation_space)
        self.action_space = self._envs[0].action_space
        self._reader = ObservationReader(self._envs[0].observation_space, self.action_space)
        self._masks = [mask_method(env, self.action_space) for env in self._envs]
        self._seed = seed
        self._resets = 0
        self._steps = 0
        self._next_step = next_step
        self._observations = self._reader.zeros(num_envs)
        self._action_mask: Array | None = None
        self._dead = [False] * num_envs  # ended, and not reset yet
        self._at = 0  # the env that is being called

    def reset(self, seeds: Sequence[int | None] | None = None) -> Reset:
        self._resets += 1
        self._dead = [False] * self.num_envs
        for i in range(self.num_envs):
            self._at = i
            seed = env_seed(self._seed, "reset", self._resets, i) if seeds is None else seeds[i]
            try:
                self._reset(i, seed)
            except Exception as error:
                self._revive(i, error)
        self._check_shown()
        return Reset(self._observations, self._live_mask(None))

    def step(self, actions: Array, active: Array | None = None) -> Step:
        self._steps += 1
        num_envs = self.num_envs
        actions = np.array(actions)  # an env may keep its action, and change it
        rewards: list[Any] = [0.0] * num_envs
        terminated, truncated, starts = [False] * num_envs, [False] * num_envs, [False] * num_envs
        mask = [True] * num_envs
        ended: list[int] = []
        lost: list[int] = []
        finals: list[dict[str, Array]] = []
        stays = None if active is None else (~active).tolist()
        for i, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
            self._at = i
            if stays is not None and stays[i]:
                mask[i] = False
                continue
            if self._dead[i]:
                self._reset_or_revive(i)
                mask[i], starts[i] = False, True
                continue
            try:
                reward, over, cut = self._step_one(i, env, action)
            except Exception as error:
                self._revive(i, error)
                mask[i], starts[i] = False, True
                lost.append(i)
                continue
            rewards[i] = reward
            if over or cut:
                terminated[i], truncated[i] = over, cut
                ended.append(i)
                finals.append({name: array[i].copy() for name, array in self._observations.items()})
                if self._next_step or stays is not None:
                    self._dead[i] = True
                else:
                    self._reset_or_revive(i)
                    starts[i] = True
        final_observations = {name: np.stack([final[name] for final in finals]) for name in finals[0]} if finals else {}
        final_envs = np.array(ended, np.int64) if ended else NO_ENVS
        if finals:
            self._reader.check(self.name, final_observations, step=self._steps, rows=final_envs, written=True)
        earned = np.array(rewards, np.float32)
        refuse_non_finite(self.name, "reward", earned, step=self._steps)
        self._check_shown()
        return Step(
            observations=self._observations,
            action_mask=self._live_mask(stays),
            rewards=earned,
            terminated=np.array(terminated),
            truncated=np.array(truncated),
            mask=np.array(mask),
            episode_starts=np.array(starts),
            final_envs=final_envs,
            final_observations=final_observations,
            lost=tuple(lost),
        )

    def doing(self) -> str:
        return f"{self.name}, env {self._at} of {self.num_envs}, step {self._steps}"

    def close(self) -> None:
        for env in self._envs:
            with contextlib.suppress(Exception):
                env.close()

    def _step_one(self, i: int, env: Env, action: Any) -> tuple[Any, Any, Any]:
        """(reward, terminated, truncated) of one env, whose observation and mask are taken in."""
        observation, reward, terminated, truncated, info = env.step(action)
        if type(reward) not in NUMBERS:
            reward = as_number("reward", reward)
        if type(terminated) not in FLAGS:
            terminated = as_flag("terminated", terminated)
        if type(truncated) not in FLAGS:
            truncated = as_flag("truncated", truncated)
        self._show(i, observation, info, ended=terminated or truncated)
        return reward, terminated, truncated

    def _show(self, i: int, observation: Any, info: Any, *, ended: bool) -> None:
        """Takes in what env i shows. Where its episode ended nobody acts on it, and its mask may be anything."""
        self._reader.write(observation, self._observations, i)
        mask = None
        if not ended and (info or self._reader.has_mask):
            mask = self._reader.mask_of(observation, info)
        method = self._masks[i]
        if mask is None and method is not None and not ended:
            mask = self._reader.mask(method())
        if mask is None:
            if self._action_mask is not None:
                self._action_mask[i] = True
            return
        if self._action_mask is None:
            self._action_mask = np.ones((self.num_envs, mask.size), bool)
        self._action_mask[i] = mask

    def _reset(self, i: int, seed: int | None) -> None:
        env = self._envs[i]
        observation, info = read_reset(env.reset() if seed is None else env.reset(seed=seed))
        if info and i == 0 and self._masks[i] is None:
            tell_unread(self.name, self.observation_space, info)
        self._show(i, observation, info, ended=False)
        self._dead[i] = False

    def _reset_or_revive(self, i: int) -> None:
        """Begins the next episode of an env whose last one ended: nothing is lost if that needs a new env."""
        try:
            self._reset(i, None)
        except Exception as error:
            self._revive(i, error)

    def _revive(self, i: int, error: Exception) -> None:
        """A new env in place of one that raised, reset with a seed of its own."""
        while True:
            self.restarts.book(f"env {i}", error, step=self._steps)
            with contextlib.suppress(Exception):
                self._envs[i].close()
            try:
                self._envs[i] = self._factory()
                self._masks[i] = mask_method(self._envs[i], self.action_space)
                self._reset(i, env_seed(self._seed, "restart", self.restarts.total, i))
                return
            except Exception as again:
                error = again

    def _check_shown(self) -> None:
        self._reader.check(self.name, self._observations, step=self._steps, written=True)

    def _live_mask(self, stays: list[bool] | None) -> Array | None:
        if self._action_mask is None:
            return None
        unused = np.array(self._dead) if stays is None else np.array(self._dead) | np.array(stays)
        return usable_mask(self.name, self._action_mask, unused, step=self._steps)
