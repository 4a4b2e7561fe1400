"""Atari games as everybody trains on them: 4 frames a step and the maximum of the last two, 84 x 84 grey, 4 stacked,
no-ops at the start. ale-py's vector env does it in C++, and needs no OpenCV as gymnasium's AtariPreprocessing does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rollcall.actors.envs.env_config import FRAME_STACK
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.arrays import Array

FRAME_SKIP = 4
_OURS = ("num_envs", "autoreset_mode", "reward_clipping", "episodic_life", "life_loss_info", "stack_num")


def make_atari(
    game: str,
    num_envs: int,
    *,
    frame_stack: int | None,
    max_episode_steps: int | None,
    autoreset: AutoresetMode,
    kwargs: Mapping[str, Any],
) -> VectorEnv[Any, Any, Any]:
    """The vector env of a game by ROM name. `kwargs` are AtariVectorEnv's, but for those with settings of their own.

    Rewards are not clipped here and a lost life ends nothing, so that the books keep the game's own score.
    """
    from ale_py.vector_env import AtariVectorEnv

    for key in _OURS:
        if key in kwargs:
            raise BadInput(
                f"env.kwargs.{key}: use the settings of env itself (frame_stack, reward_clip, episodic_life)"
            )
    settings: dict[str, Any] = {"num_threads": 1, "frameskip": FRAME_SKIP, **kwargs}
    if max_episode_steps is not None:
        settings["max_num_frames_per_episode"] = max_episode_steps * settings["frameskip"]
    return AtariVectorEnv(
        game,
        num_envs,
        autoreset_mode=autoreset,
        stack_num=frame_stack or FRAME_STACK,
        reward_clipping=False,
        **settings,
    )


class AtariEnv(gym.Env[Array, Any]):
    """One game as a plain gymnasium env. Shows what the policy sees: `render` gives the newest frame, enlarged."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 - gymnasium's own way

    def __init__(self, games: VectorEnv[Any, Any, Any], render_mode: str | None = None) -> None:
        assert games.num_envs == 1
        self.render_mode = render_mode
        self._games = games
        self._frame: Array | None = None
        self.observation_space = games.single_observation_space
        self.action_space = games.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        observations, infos = self._games.reset(seed=None if seed is None else np.array([seed]))  # type: ignore[arg-type]
        return self._show(observations), _first(infos)

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self._games.step(np.array([action], np.int64))
        return self._show(observations), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _first(infos)

    def render(self) -> Any:
        if self._frame is None:
            return None
        frame = self._frame if self._frame.ndim == 3 else np.repeat(self._frame[:, :, None], 3, axis=2)
        return frame.repeat(3, axis=0).repeat(3, axis=1)

    def close(self) -> None:
        self._games.close()

    def _show(self, observations: Array) -> Array:
        self._frame = observations[0, -1]
        return np.array(observations[0])


def _first(infos: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value[0] for name, value in infos.items() if name != "env_id"}
