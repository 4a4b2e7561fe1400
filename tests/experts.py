"""Experts by hand, as a user would name them, and what they do in an env as a recorded set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.actors.envs.plain_spaces import space_text
from rollcall.cluster.messages.recorded import RecordedEpisodes


def balances(observation: Any) -> int:
    """CartPole's pole, for 500 steps."""
    place, speed, angle, turning = observation
    return int(0.1 * place + 0.3 * speed + 3.0 * angle + turning > 0)


def swings(observation: Any) -> Any:
    """Pendulum: torque along its speed, and against its angle near the top. No good one, but always the same."""
    cosine, sine, speed = observation
    torque = 2.0 * np.sign(speed) if cosine < 0.7 else -10.0 * sine - 2.0 * speed
    return np.clip(np.array([torque], np.float32), -2.0, 2.0)


def fails(observation: Any) -> int:
    """After a moment."""
    if abs(observation[2]) > 0.05:
        raise KeyError("no label for this")
    return 1


def recorded(
    env_id: str, expert: Callable[[Any], Any], *, episodes: int, steps: int = 500, seed: int = 0
) -> RecordedEpisodes:
    """By hand, without anything that writes recorded sets."""
    env = gym.make(env_id)
    shown, last, actions, rewards, terminated, truncated, ends = ([] for _ in range(7))  # type: ignore[var-annotated]
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        for step in range(steps):
            action = expert(observation)
            shown.append(observation)
            observation, reward, over, cut, _ = env.step(action)
            actions.append(action)
            rewards.append(reward)
            terminated.append(over)
            truncated.append(not over and (cut or step == steps - 1))
            if over or truncated[-1]:
                break
        last.append(observation)
        ends.append(len(rewards))
    env.close()
    return RecordedEpisodes(
        env=env_id,
        observation_space=space_text(env.observation_space),
        action_space=space_text(env.action_space),
        acted_by="unknown",
        observations={"observation": np.array(shown)},
        actions=np.array(actions),
        rewards=np.array(rewards, np.float32),
        terminated=np.array(terminated),
        truncated=np.array(truncated),
        episode_ends=np.array(ends),
        last_observations={"observation": np.array(last)},
    )
