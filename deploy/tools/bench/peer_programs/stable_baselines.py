"""Stable-Baselines3 (torch) and SBX (JAX), which has the same interface: PPO, A2C, SAC and DQN with the settings of a
recipe."""

from __future__ import annotations

import importlib

from clock import WORK, Clock
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

NO_END = 1_000_000_000  # env steps of a measurement, which the clock ends


class Watch(BaseCallback):
    """Looks at the clock before each rollout: what was collected before it has been learnt from."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._over = False

    def _on_rollout_start(self) -> None:
        self._over = self._clock.is_over(self.num_timesteps)

    def _on_step(self) -> bool:
        return not self._over


def activation(library: str) -> object:
    if library == "sbx":
        return getattr(importlib.import_module("flax.linen"), WORK["activation"])
    return {"tanh": "Tanh", "relu": "ReLU"}[WORK["activation"]]


def main() -> None:
    library = WORK["library"]
    act = activation(library)
    if library == "stable_baselines3":
        torch = importlib.import_module("torch")
        torch.set_num_threads(WORK["threads"])
        act = getattr(torch.nn, str(act))
    env = make_vec_env(WORK["env"], n_envs=WORK["num_envs"], seed=WORK["seed"], env_kwargs=WORK["env_kwargs"])
    if WORK["normalise_observations"] or WORK["normalise_rewards"]:
        env = VecNormalize(
            env,
            norm_obs=WORK["normalise_observations"],
            norm_reward=WORK["normalise_rewards"],
            gamma=WORK["algorithm"]["gamma"],
        )
    rate = WORK["learning_rate"]
    model = getattr(importlib.import_module(library), WORK["algorithm_name"].upper())(
        "MlpPolicy",
        env,
        learning_rate=(lambda remaining: rate * remaining) if WORK["anneal"] else rate,
        policy_kwargs={"net_arch": WORK["net_arch"], "activation_fn": act},
        seed=WORK["seed"],
        device="cpu",
        **WORK["algorithm"],
    )
    clock = Clock(warm_up_steps=WORK["warm_up_steps"])
    model.learn(WORK["learn_steps"] or NO_END, callback=Watch(clock))
    clock.is_over(model.num_timesteps)
    clock.tell(info["r"] for info in model.ep_info_buffer)


if __name__ == "__main__":
    main()
