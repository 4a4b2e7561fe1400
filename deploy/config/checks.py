"""What no component can check alone, where it takes the environment, the network or the machine to see. Each problem
names the setting to change; validation.py says where that was written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_vector_env, spaces_of
from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.first_looks import named
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.root_config import OptimisedConfig
from rollcall.learners.algorithm import with_own_models
from rollcall.learners.models.networks import build_actor_critic
from rollcall.learners.models.policy_config import PolicyConfig

# In standard deviations of the first policy: a range is far off that begins beyond the one, or reaches to both sides
# more than the other.
_REACH = 3.0
_REACH_OF_RANGE = 10.0


def check_device(config: OptimisedConfig) -> list[Problem]:
    name, path = config.learner.device, ("learner", "device")
    if name == "auto":
        return []
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return [Problem(path, f"this machine has {torch.cuda.device_count()} GPUs for torch: use cpu or auto")]
    return []


def check_env(env: EnvConfig, policy: PolicyConfig, algorithm: Any, *, scored: bool = False) -> list[Problem]:
    """Whether the environment can be made as the settings say, and whether network and algorithm fit its spaces.
    `scored`: by the reward service."""
    try:
        observation_space, action_space = _spaces(env)
    except BadInput as error:
        return [named(str(error), "env", default=("env", "id"), own=f"env {env.id!r} ")]
    try:
        network = build_actor_critic(observation_space, action_space, policy, with_critic=True, seed=0)
        with_own_models(algorithm, {"actor_critic": network})
    except ValueError as error:
        section = "algorithm" if str(error).startswith("algorithm.") else "policy"
        return [named(str(error), section, default=("env", "id"))]
    if scored and not isinstance(observation_space, spaces.Box):
        kind = type(observation_space).__name__
        return [Problem(("env", "id"), f"shows {kind} observations: the reward service takes one array of numbers")]
    return []


def out_of_reach(env: str, action_space: Any, policy: PolicyConfig) -> list[str]:
    """A warning where actions that are clipped begin far from what the env's bounds ask for. Their distribution is a
    Gaussian around 0 whose width is exp(policy.log_std_init), whatever the bounds are; what lies outside is clipped."""
    if not isinstance(action_space, spaces.Box) or policy.squash != "clip":
        return []
    low, high, width = np.ravel(action_space.low), np.ravel(action_space.high), math.exp(policy.log_std_init)
    bounded = np.isfinite(low) & np.isfinite(high)
    nearest = np.clip(0.0, low, high)  # of the bounds' range to 0
    far = bounded & (high > low) & ((np.abs(nearest) > _REACH * width) | (high - low > 2 * _REACH_OF_RANGE * width))
    if not far.any():
        return []
    worst = int(np.argmax(np.where(far, np.maximum(np.abs(low), np.abs(high)), -1.0)))
    bounds = f"[{low[worst]:g}, {high[worst]:g}]"
    return [
        f"{env} takes actions in {bounds}, and the policy's begin at 0 with a standard deviation of {width:g}: it will "
        "hardly reach the rest. Set policy.squash=tanh, which follows the bounds, or let the env take [-1, 1]"
    ]


def _spaces(env: EnvConfig) -> tuple[Any, Any]:
    if env.vectorization == "async" and not env.is_atari:
        return spaces_of(env)  # a group would start processes only to ask
    make_vector_env(env, 1).close()
    return spaces_of(env)
