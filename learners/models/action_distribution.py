"""What a control policy's actions are drawn from, as its settings and the env's action space say."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.learners.maths.distributions import ActionDistribution, distribution_for
from rollcall.learners.maths.epsilon_greedy import EpsilonGreedy
from rollcall.learners.maths.noisy_actions import noisy_actions
from rollcall.learners.models.policy_config import PolicyConfig


def distribution_of(config: PolicyConfig, action_space: gym.Space[Any]) -> ActionDistribution:
    """What samples the actions of a space, and makes of them (`to_env`) those that the env takes: for acting, and for
    whoever judges what was done.

    Raises:
      ValueError: where the settings do not go with such a space.
    """
    if config.exploration_noise is not None:
        return noisy_actions(action_space, config.exploration_noise)
    if config.q is None:
        return distribution_for(action_space, config.squash)
    if not isinstance(action_space, gym.spaces.Discrete):
        raise ValueError(f"q: values of single actions are had of a Discrete space alone, not of {action_space}")
    return EpsilonGreedy(int(action_space.n), start=int(action_space.start), dtype=np.dtype(action_space.dtype))
