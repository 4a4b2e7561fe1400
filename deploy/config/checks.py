"""What no component can check alone: settings that contradict each other, the environment, or the machine. Each problem
names the setting to change; validation.py says where that was written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rollcall.actors.envs.environment import EnvConfig, make_vector_env, spaces_of
from rollcall.cluster.errors import BadInput
from rollcall.deploy.config import plugins
from rollcall.deploy.config.root_config import OptimisedConfig
from rollcall.deploy.config.run_config import OnlineConfig, RunConfig
from rollcall.deploy.config.settings import KeyPath
from rollcall.learners.algorithm import with_own_models
from rollcall.learners.models.networks import PolicyConfig, build_actor_critic

# In standard deviations of the first policy: a range is far off that begins beyond the one, or reaches to both sides
# more than the other.
_REACH = 3.0
_REACH_OF_RANGE = 10.0


@dataclass(frozen=True, slots=True)
class Problem:
    path: KeyPath
    text: str


def check_settings(config: RunConfig) -> list[Problem]:
    """Contradictions that show without making an environment."""
    if plugins.is_language(config.algorithm_class):
        return [Problem(("algorithm", "name"), "learns from text: give the recipe a task instead of an env")]
    return [
        *_length(config),
        *_shards(config),
        *check_lag(config),
        *_portions(config),
        *_sharding(config),
        *_preferences(config),
        *_replay(config),
        *_expert(config),
        *_gradients(config),
        *_compiled(config),
        *check_device(config),
    ]


def _preferences(config: RunConfig) -> list[Problem]:
    """What a run that learns its reward from raters lacks."""
    preferences, problems = config.preferences, []
    if preferences is None:
        return []
    if config.reward is not None:
        problems.append(Problem(("reward",), "preferences make the reward of this run: leave one of the two out"))
    if config.algorithm_class.unit != "fragment" or config.learner_steps is None:
        text = f"{config.algorithm_name} learns from whole episodes: use an algorithm that learns from fragments (ppo)"
        problems.append(Problem(("algorithm", "name"), text))
    elif preferences.segment_steps > config.actors.unroll_length:
        text = f"longer than actors.unroll_length={config.actors.unroll_length}, in which stretches are found: lower it"
        problems.append(Problem(("preferences", "segment_steps"), text))
    return problems


def _replay(config: RunConfig) -> list[Problem]:
    """What a run with kept experience cannot do, or has no room for."""
    replay, name = config.replay, config.algorithm_name
    needs = config.algorithm_class.needs.replay
    if replay is None:
        return [Problem(("replay",), f"{name} learns from kept experience: leave it out for the defaults")] * needs
    if not needs:
        return [Problem(("replay",), f"{name} learns from fresh experience and keeps none: remove the section")]
    problems = []
    if config.policy.recurrent != "none":
        text = f"{name} draws single steps, of which a memory knows nothing: use none"
        problems.append(Problem(("policy", "recurrent"), text))
    if config.policy.normalise_rewards:
        text = "kept rewards would each be of another scale: use env.reward_clip, or scale them in the env"
        problems.append(Problem(("policy", "normalise_rewards"), text))
    batch = config.actors.num_envs * config.actors.unroll_length
    if replay.capacity < 2 * batch + config.actors.num_envs:
        text = f"less than two learner steps' experience ({batch} env steps each, and where episodes ended)"
        text += f": raise it to {2 * batch + config.actors.num_envs} or more, or lower actors.unroll_length"
        problems.append(Problem(("replay", "capacity"), text))
    total = config.total_env_steps or (config.total_learner_steps or 0) * batch
    if total and replay.learning_starts >= total:
        problems.append(Problem(("replay", "learning_starts"), f"the run ends after {total} env steps: lower it"))
    if config.learner.num_processes > replay.batch_size:
        text = f"more learner processes than the {replay.batch_size} transitions of a minibatch to share"
        problems.append(Problem(("learner", "num_processes"), f"{text}: {replay.batch_size} at the most"))
    return problems


def _compiled(config: RunConfig) -> list[Problem]:
    """What torch cannot compile, or would have to compile for every batch anew."""
    if config.learner.compile != "on":
        return []
    where, reason = ("learner", "compile"), ""
    if config.policy.recurrent != "none":
        reason = f"torch does not compile a {config.policy.recurrent}"
    elif config.algorithm_class.unit == "episode":
        reason = f"{config.algorithm_name} learns from whole episodes, and each batch has another length"
    return [Problem(where, f"{reason}: set it to off or auto")] if reason else []


def _expert(config: RunConfig) -> list[Problem]:
    if config.expert is None or config.actors.outside is None:
        return []
    text = f"{config.algorithm_name}'s expert labels what the run's own actors see: leave it out"
    return [Problem(("actors", "outside"), text)]


def _gradients(config: RunConfig) -> list[Problem]:
    """What needs the experience itself, which stays with the actors where they compute the gradients."""
    if not config.learns_from_gradients:
        return []
    name, found = config.algorithm_name, []
    if config.learner.num_processes > 1:
        text = f"actors compute {name}'s gradients, and more learner processes have no part in it: set it to 1"
        found.append(Problem(("learner", "num_processes"), text))
    for setting in ("normalise_observations", "normalise_rewards"):
        if getattr(config.policy, setting):
            text = f"{name}'s learner is given gradients, and sees no experience to take statistics of: set it to false"
            found.append(Problem(("policy", setting), text))
    for section in ("reward", "preferences"):
        if getattr(config, section) is not None:
            text = f"{name}'s actors compute gradients before anybody could score what was done: remove the section"
            found.append(Problem((section,), text))
    if config.actors.outside is not None:
        text = f"outside actors hand in experience, and {name} takes gradients: remove the section"
        found.append(Problem(("actors", "outside"), text))
    return found


def _length(config: RunConfig) -> list[Problem]:
    if config.total_env_steps is not None and config.total_learner_steps is not None:
        return [Problem(("total_learner_steps",), "total_env_steps is given too: keep one of the two")]
    if config.total_env_steps is None and config.total_learner_steps is None:
        return [Problem(("total_env_steps",), "the run has no end: give total_env_steps or total_learner_steps")]
    return []


def _shards(config: RunConfig) -> list[Problem]:
    actors, problems = config.actors, []
    if actors.num_envs % actors.num_shards:
        near = [n for n in range(1, actors.num_envs + 1) if actors.num_envs % n == 0]
        text = f"{actors.num_envs} envs do not divide into {actors.num_shards} env shards of one size"
        problems.append(
            Problem(("actors", "num_envs"), f"{text}: choose actors.num_shards among {', '.join(map(str, near))}")
        )
    own = actors.first_outside_shard
    if own < 0:
        text = f"more than there are env shards ({actors.num_shards}): raise actors.num_shards"
        problems.append(Problem(("actors", "outside", "num_shards"), text))
    elif actors.num > own:
        text = f"more actors than env shards ({own}): {actors.num - own} would have no work"
        problems.append(Problem(("actors", "num"), f"{text}; set actors.num={own} or raise actors.num_shards"))
    elif actors.num == 0 and own > 0:
        text = f"nobody steps {own} of the env shards: give all to outside actors"
        problems.append(Problem(("actors", "num"), f"{text} (actors.outside.num_shards={actors.num_shards}), or set 1"))
    return problems


def check_lag(config: OnlineConfig) -> list[Problem]:
    if config.max_policy_lag == 0 or config.algorithm_class.needs.corrects_policy_lag:
        return []
    half = plugins.is_language(config.algorithm_class)
    known = {name: plugins.find(plugins.ALGORITHM, name) for name in plugins.shipped(plugins.ALGORITHM)}
    able = [n for n, found in known.items() if found.needs.corrects_policy_lag and plugins.is_language(found) == half]
    text = f"{config.algorithm_name} has no correction for a policy that lags behind: set max_policy_lag=0"
    return [Problem(("max_policy_lag",), f"{text}, or use an algorithm that has one ({', '.join(able)})")]


def _portions(config: RunConfig) -> list[Problem]:
    """A minibatch and a learner process need something to work on. A recurrent policy's rows are whole env columns."""
    batch = config.steps_per_batch
    recurrent = config.policy.recurrent != "none"
    rows = config.actors.num_envs if recurrent or batch is None else batch
    what = "envs" if recurrent or batch is None else "env steps"
    minibatches = int(getattr(config.algorithm, "num_minibatches", 1))
    problems = []
    if minibatches > rows:
        text = f"more minibatches than the {rows} {what} of a batch{' (a recurrent policy)' if recurrent else ''}"
        problems.append(Problem(("algorithm", "num_minibatches"), f"{text}: {rows} at the most"))
    elif config.learner.num_processes > rows // minibatches:
        text = f"more learner processes than the {rows // minibatches} {what} of a minibatch to share"
        problems.append(Problem(("learner", "num_processes"), f"{text}: {rows // minibatches} at the most"))
    return problems


def _sharding(config: RunConfig) -> list[Problem]:
    if config.learner.sharding != "fsdp":
        return []
    return [Problem(("learner", "sharding"), "a control network is small: cutting it gains nothing; use auto or none")]


def check_device(config: OptimisedConfig) -> list[Problem]:
    name, path = config.learner.device, ("learner", "device")
    if name == "auto":
        return []
    try:
        device = torch.device(name)
    except RuntimeError:
        return [Problem(path, "no such device: use auto, cpu, cuda or cuda:N")]
    if device.type not in ("cpu", "cuda"):
        return [Problem(path, "not supported: use auto, cpu, cuda or cuda:N")]
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return [Problem(path, f"this machine has {torch.cuda.device_count()} GPUs for torch: use cpu or auto")]
    return []


def check_env(env: EnvConfig, policy: PolicyConfig, algorithm: Any, *, scored: bool = False) -> list[Problem]:
    """Whether the environment can be made as the settings say, and whether network and algorithm fit its spaces.
    `scored`: by the reward service."""
    try:
        observation_space, action_space = _spaces(env)
    except BadInput as error:
        return [_named(str(error), "env", default=("env", "id"), own=f"env {env.id!r} ")]
    try:
        network = build_actor_critic(observation_space, action_space, policy, with_critic=True, seed=0)
        with_own_models(algorithm, {"actor_critic": network})
    except ValueError as error:
        section = "algorithm" if str(error).startswith("algorithm.") else "policy"
        return [_named(str(error), section, default=("env", "id"))]
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


def _named(text: str, section: str, *, default: KeyPath, own: str = "") -> Problem:
    """A component's own words: `setting=value: what is wrong`, or about the env as a whole."""
    match = re.match(rf"(?:{section}\.)?(\w+)=[^:,]*[:,] (?:but )?", text)
    if match:
        return Problem((section, match.group(1)), text[match.end() :])
    return Problem(default, text.removeprefix(own).removeprefix(own.replace("'", "")))
