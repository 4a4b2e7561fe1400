"""A user's env is stepped with random actions, within the check that actors have it in, and held against itself: the
same seed must be the same episode."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.actors.envs.action_masks import num_choices
from rollcall.actors.envs.checked_env import CheckedEnv
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import ASYNC_PAYS_FROM_S, make_env
from rollcall.actors.envs.observations import check_spaces
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.user_code import user_line_of
from rollcall.deploy.tools.own.seen import Seen, one_line

STEPS, SECONDS = 1000, 5.0  # at the most
EPISODES_ALIKE_STEPS = 100


@dataclass
class _Played:
    """What random actions met."""

    costs_s: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    outside: str = ""  # the first observation that is not in the space
    truncated: int = 0


def look_at_env(name: str, kwargs: Mapping[str, Any]) -> Seen:
    """Steps it for some seconds."""
    seen = Seen("env", name)
    config = EnvConfig(id=name, kwargs=dict(kwargs))
    try:
        env = make_env(config)
    except BadInput as error:
        seen.problems.append(str(error))
        return seen
    try:
        check_spaces(name, env.observation_space, env.action_space)
        seen.facts.append(f"observations: {env.observation_space}")
        seen.facts.append(f"actions: {env.action_space}")
        _told(seen, _played(env), env)
        if (unlike := _unlike(config)) is not None:
            seen.notes.append(unlike)
    except BadInput as error:
        seen.problems.append(str(error))
    except Exception as error:
        seen.problems.append(f"{place}: {one_line(error)}" if (place := user_line_of(error)) else one_line(error))
    finally:
        env.close()
    return seen


def _played(env: gym.Env[Any, Any]) -> _Played:
    played, checked = _Played(), CheckedEnv(env)
    env.action_space.seed(0)
    until = time.monotonic() + SECONDS
    info = checked.reset(seed=0)[1]
    length, total = 0, 0.0
    while len(played.costs_s) < STEPS and time.monotonic() < until:
        action = _drawn(env.action_space, info)
        began = time.perf_counter()
        observation, reward, terminated, truncated, info = checked.step(action)
        played.costs_s.append(time.perf_counter() - began)
        played.rewards.append(float(reward))
        length, total = length + 1, total + float(reward)
        space = checked.observation_space  # without a mask, which is no part of what is observed
        if not played.outside and not space.contains(observation):
            played.outside = f"step {len(played.costs_s)}: {_shown(observation)} is not in {space}"
        if terminated or truncated:
            played.lengths.append(length)
            played.returns.append(total)
            played.truncated += bool(truncated and not terminated)
            length, total = 0, 0.0
            info = checked.reset(seed=len(played.lengths))[1]
    return played


def _drawn(space: gym.Space[Any], info: Mapping[str, Any]) -> Any:
    """An action at random, of those that the env's mask allows."""
    mask = info.get("action_mask")
    if mask is None or not isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return space.sample()
    allowed = np.asarray(mask).astype(np.int8)
    if isinstance(space, gym.spaces.Discrete):
        return space.sample(allowed)
    parts = np.split(allowed, np.cumsum(num_choices(space))[:-1])
    chosen = [int(space.np_random.choice(np.flatnonzero(part))) if part.any() else 0 for part in parts]
    return (np.reshape(chosen, space.nvec.shape) + space.start).astype(space.dtype)


def _told(seen: Seen, played: _Played, env: gym.Env[Any, Any]) -> None:
    cost = statistics.median(played.costs_s)
    seen.facts.append(f"a step takes {1e6 * cost:,.0f} us: {1 / max(cost, 1e-9):,.0f} steps/s in one process")
    if cost > ASYNC_PAYS_FROM_S:
        seen.facts.append("slow enough for a process each: env.vectorization=auto takes async")
    if played.lengths:
        lengths = f"{min(played.lengths)} to {max(played.lengths)} steps"
        cut = f", {played.truncated} of them cut off" if played.truncated else ""
        mean = statistics.fmean(played.returns)
        seen.facts.append(f"{len(played.lengths)} episodes of random actions: {lengths}{cut}, return {mean:.4g}")
    else:
        steps = len(played.costs_s)
        seen.notes.append(f"no episode ended within {steps} random steps: set env.max_episode_steps, or end them")
    if len(set(played.rewards)) == 1 and len(set(played.lengths)) <= 1:
        seen.notes.append(f"every reward was {played.rewards[0]:g}: random actions met nothing to learn from")
    if not all(np.isfinite(played.rewards)):
        seen.problems.append("a reward is not finite")
    if played.outside:
        seen.problems.append(f"an observation outside its space: {played.outside}")
    for path, space in _boxes(env.observation_space):
        if space.dtype == np.float64:
            seen.notes.append(f"observations{path} are float64: networks take float32, so they are converted")
    if isinstance(env.action_space, gym.spaces.Box) and not np.all(np.isfinite(env.action_space.low)):
        seen.notes.append("the action space has no bounds: actions are as large as the policy likes")


def _unlike(config: EnvConfig) -> str | None:
    """Where two envs with the same seed and the same actions come apart."""
    first, second = CheckedEnv(make_env(config)), CheckedEnv(make_env(config))
    try:
        first.action_space.seed(1)
        (began, info), (other, _) = first.reset(seed=7), second.reset(seed=7)
        pairs = [(began, other)]
        for step in range(EPISODES_ALIKE_STEPS):
            action = _drawn(first.action_space, info)
            ours, theirs = first.step(action), second.step(action)
            pairs.append((ours[0], theirs[0]))
            if not _same(*pairs[-1]) or ours[1] != theirs[1]:
                return (
                    f"the same seed and actions came apart at step {step + 1}: draw from self.np_random, or runs and "
                    "evaluations cannot be repeated"
                )
            if ours[2] or ours[3]:
                break
            info = ours[4]
        return None if _same(*pairs[0]) else "the same seed began two different episodes: draw from self.np_random"
    finally:
        first.close()
        second.close()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return np.array_equal(np.asarray(one), np.asarray(other), equal_nan=False)


def _boxes(space: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(space, gym.spaces.Dict):
        return [box for key, inner in space.spaces.items() for box in _boxes(inner, f"{path} {key}")]
    return [(path, space)] if isinstance(space, gym.spaces.Box) else []


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
