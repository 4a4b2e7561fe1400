"""A control recipe as a peer's program takes it: the same env, network, batch, passes and rates; and which recipes a
peer has an equal of. What each peer does differently all the same: docs/results.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from rollcall.actors.envs.pool import PREFIX
from rollcall.cluster.cores import usable_cores
from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.tools.bench.peers import Peer, prepare
from rollcall.learners.models.q_config import QConfig

_ALGORITHMS = {
    "sb3": ("ppo", "a2c", "sac", "dqn"),
    "sbx": ("ppo", "sac", "dqn"),
    **dict.fromkeys(("rejax", "cleanrl", "envpool"), ("ppo",)),
}
_LIBRARIES = {"sb3": "stable_baselines3", "sbx": "sbx"}
# Where an env's package is one that its env needs: the start of its entry point -> packages.
_ENV_PACKAGES = {
    "gymnasium.envs.mujoco": ("mujoco", "imageio", "packaging"),
    "gymnasium.envs.box2d": ("box2d",),
}
_GYMNAX = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0")
_SHARED_BY_ALE = ("repeat_action_probability", "img_height", "img_width")  # arguments of one name and meaning
_WIDE = 256  # from this width of a layer on a matrix product is worth a second thread
_WARM_UP_UPDATES = 300  # gradient steps of an off-policy algorithm before the clock runs


@dataclass(frozen=True)
class Rival:
    """A peer that is installed, and its work."""

    peer: Peer
    work: dict[str, Any]  # as its program takes it, but for `seconds` and `learn_steps`


def rivals(config: RunConfig, names: Sequence[str], say: Callable[[str], None]) -> list[Rival]:
    """Raises BadInput where a peer has no equal of the recipe, before any is installed."""
    works = {name: peer_work(config, name) for name in names}
    return [Rival(prepare(name, say, extras=_env_packages(config, name)), work) for name, work in works.items()]


def _env_packages(config: RunConfig, peer: str) -> tuple[str, ...]:
    """What a peer's environment needs beside the peer, at our version."""
    spec = gym.registry.get(config.env.id.removeprefix(PREFIX))
    if spec is None or peer in ("rejax", "envpool"):
        return ()
    place = str(spec.entry_point)
    return next((packages for start, packages in _ENV_PACKAGES.items() if place.startswith(start)), ())


def peer_work(config: RunConfig, peer: str) -> dict[str, Any]:
    """The work, but for how long.

    Raises:
      BadInput: in one line, where the peer has no equal of the recipe.
    """
    _refuse_other_work(config, peer)
    schedule, policy = config.learner.schedule.kind, config.policy
    work = {
        "seed": config.seed,
        "threads": _threads(config),
        "num_envs": config.actors.num_envs,
        "learning_rate": config.learner.learning_rate,
        "anneal": schedule == "linear",
        "activation": policy.activation,
        "hidden_sizes": list(policy.hidden_sizes),
        "normalise_observations": policy.normalise_observations,
        "normalise_rewards": policy.normalise_rewards,
    }
    work |= _pool(config) if peer == "envpool" else _env(config, peer)
    if peer in _LIBRARIES:
        return work | _stable_baselines(config, peer)
    return work | _ppo(config)


def _threads(config: RunConfig) -> int:
    """Of torch: two 64 x 64 networks are slower on two threads than on one, and much slower where cores are shared."""
    if config.env.num_frames > 1 or max(config.policy.hidden_sizes, default=0) >= _WIDE:
        return usable_cores()
    return 1


def _refuse_other_work(config: RunConfig, peer: str) -> None:
    name, policy, replay = config.algorithm_name, config.policy, config.replay
    if name not in _ALGORITHMS[peer]:
        known = ", ".join(_ALGORITHMS[peer])
        raise BadInput(f"--peer {peer}: it has no equal of {name}, but of {known}: choose another recipe or peer")
    differences: Mapping[str, Any] = {
        "policy.recurrent": policy.recurrent != "none",
        "policy.warm_start": policy.warm_start is not None,
        "policy.init_from": policy.init_from is not None,
        "env.fixed_episode_steps": config.env.fixed_episode_steps is not None,
        "reward": config.reward is not None,
        "preferences": config.preferences is not None,
        "algorithm.kl_penalty": getattr(config.algorithm, "kl_penalty", None) is not None,
        "algorithm.target_kl": getattr(config.algorithm, "target_kl", None) is not None,
        "policy.q": policy.q is not None and policy.q != QConfig(),
        "replay.prioritised": replay is not None and replay.prioritised is not None,
        "replay.n_step": replay is not None and replay.n_step != 1,
    }
    for setting, differs in differences.items():
        if differs:
            raise BadInput(f"--peer {peer}: it has no equal of {setting}: choose a recipe without it")


def _env(config: RunConfig, peer: str) -> dict[str, Any]:
    env = config.env
    task = env.id.removeprefix(PREFIX)
    pooled = env.id.startswith(PREFIX)
    kwargs = {key: value for key, value in env.kwargs.items() if not (pooled and key == "num_threads")}
    if env.is_atari or env.episodic_life or env.num_frames > 1:
        raise BadInput(f"--peer {peer}: games of Atari are compared with --peer envpool alone")
    if task not in gym.registry or (pooled and kwargs):
        raise BadInput(f"--peer {peer}: {env.id} is not gymnasium's own: the peer has no equal of it")
    if peer == "rejax" and (task not in _GYMNAX or kwargs or env.max_episode_steps):
        raise BadInput(f"--peer rejax: gymnax has no equal of this env: it has {', '.join(_GYMNAX)} as they are")
    if env.max_episode_steps is not None:
        kwargs["max_episode_steps"] = env.max_episode_steps
    return {"env": task, "env_kwargs": kwargs, "pool": None}


def _pool(config: RunConfig) -> dict[str, Any]:
    env, policy = config.env, config.policy
    if policy.normalise_observations or policy.normalise_rewards:
        raise BadInput("--peer envpool: CleanRL's form with EnvPool normalises nothing: choose --peer cleanrl")
    pool = dict(env.kwargs)
    if env.is_atari:
        pool = {"repeat_action_probability": 0.25, **pool}  # ALE's v5
        if others := pool.keys() - _SHARED_BY_ALE:
            raise BadInput(f"--peer envpool: it has no equal of env.kwargs.{min(others)}: leave it out")
    elif not env.id.startswith(PREFIX) and pool:
        raise BadInput(f"--peer envpool: it has no equal of env.kwargs.{min(pool)}: leave it out")
    if env.is_atari or env.episodic_life or env.reward_clip is not None:
        pool |= {"episodic_life": env.episodic_life, "reward_clip": env.reward_clip is not None}
    if env.num_frames > 1:
        pool["stack_num"] = env.num_frames
    if env.max_episode_steps is not None:
        pool["max_episode_steps"] = env.max_episode_steps
    return {"env": env.id.removeprefix(PREFIX).removeprefix("ALE/"), "pool": pool}


def _ppo(config: RunConfig) -> dict[str, Any]:
    algorithm: Any = config.algorithm
    return {
        "num_steps": _steps_of_each_env(config),
        "num_minibatches": algorithm.num_minibatches,
        "epochs": algorithm.epochs,
        "gamma": algorithm.discount,
        "gae_lambda": algorithm.gae_lambda,
        "clip_range": algorithm.clip_range,
        "clip_value_loss": algorithm.value_loss == "clipped",
        "value_coef": algorithm.value_coef,
        "entropy_coef": algorithm.entropy_coef,
        "max_grad_norm": config.learner.max_grad_norm or 1e9,
        "warm_up_steps": 2 * (config.steps_per_batch or 0),
    }


def _stable_baselines(config: RunConfig, peer: str) -> dict[str, Any]:
    """Stable-Baselines3's own names."""
    arguments: Mapping[str, Callable[[RunConfig, str], dict[str, Any]]] = {
        "ppo": _sb3_ppo,
        "a2c": _sb3_a2c,
        "sac": _sb3_sac,
        "dqn": _sb3_dqn,
    }
    sizes = list(config.policy.hidden_sizes)
    critic = {"ppo": "vf", "a2c": "vf", "sac": "qf"}.get(config.algorithm_name)
    replay = config.replay
    warm_up = 2 * (config.steps_per_batch or 0)
    if replay is not None:
        warm_up = replay.learning_starts + round(_WARM_UP_UPDATES / replay.updates_per_env_step)
    return {
        "library": _LIBRARIES[peer],
        "algorithm_name": config.algorithm_name,
        "algorithm": arguments[config.algorithm_name](config, peer),
        "net_arch": sizes if critic is None else {"pi": sizes, critic: sizes},
        "warm_up_steps": warm_up,
    }


def _sb3_a2c(config: RunConfig, peer: str) -> dict[str, Any]:
    algorithm: Any = config.algorithm
    return {
        "n_steps": _steps_of_each_env(config),
        "gamma": algorithm.discount,
        "gae_lambda": algorithm.gae_lambda,
        "vf_coef": algorithm.value_coef,
        "ent_coef": algorithm.entropy_coef,
        "max_grad_norm": config.learner.max_grad_norm or 1e9,
        "normalize_advantage": algorithm.normalise_advantages is True,
        "use_rms_prop": config.learner.optimizer.kind == "rmsprop",
    }


def _sb3_ppo(config: RunConfig, peer: str) -> dict[str, Any]:
    algorithm: Any = config.algorithm
    return {
        "n_steps": _steps_of_each_env(config),
        "batch_size": (config.steps_per_batch or 0) // algorithm.num_minibatches,
        "n_epochs": algorithm.epochs,
        "gamma": algorithm.discount,
        "gae_lambda": algorithm.gae_lambda,
        "clip_range": algorithm.clip_range,
        # SBX takes the setting and leaves it aside.
        "clip_range_vf": algorithm.value_clip_range if algorithm.value_loss == "clipped" and peer == "sb3" else None,
        "vf_coef": algorithm.value_coef,
        "ent_coef": algorithm.entropy_coef,
        "max_grad_norm": config.learner.max_grad_norm or 1e9,
    }


def _sb3_sac(config: RunConfig, peer: str) -> dict[str, Any]:
    return {**_replayed(config), "tau": config.algorithm.target_rate}  # type: ignore[attr-defined]


def _sb3_dqn(config: RunConfig, peer: str) -> dict[str, Any]:
    algorithm: Any = config.algorithm
    assert config.replay is not None
    return {
        **_replayed(config),
        "tau": algorithm.target_rate,
        "target_update_interval": max(1, round(algorithm.target_every / config.replay.updates_per_env_step)),
        "exploration_final_eps": algorithm.epsilon,
        "exploration_fraction": min(1.0, algorithm.epsilon_steps / (config.total_env_steps or algorithm.epsilon_steps)),
    }


def _replayed(config: RunConfig) -> dict[str, Any]:
    replay = config.replay
    assert replay is not None
    updates = replay.updates_per_env_step * config.actors.num_envs  # of a step of all envs
    return {
        "buffer_size": replay.capacity,
        "batch_size": replay.batch_size,
        "gamma": config.algorithm.discount,  # type: ignore[attr-defined]
        "learning_starts": replay.learning_starts,
        "train_freq": max(1, round(1 / updates)),
        "gradient_steps": max(1, round(updates)),
    }


def _steps_of_each_env(config: RunConfig) -> int:
    return (config.steps_per_batch or 0) // config.actors.num_envs
