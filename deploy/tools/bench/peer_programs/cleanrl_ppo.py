"""PPO in CleanRL's form. CleanRL is no package that could be installed and called: this is our own short program, after
its ppo.py, ppo_continuous_action.py and ppo_atari_envpool.py (one file, one loop, storage in torch; a truncation counts
as a termination), with gymnasium's SyncVectorEnv or with EnvPool."""

from __future__ import annotations

import importlib
import itertools
import math
from collections import deque

import gymnasium as gym
import numpy as np
import torch
from clock import LAST_EPISODES, WORK, Clock
from torch import nn
from torch.distributions import Categorical, Independent, Normal


def make_env() -> gym.Env:
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(WORK["env"], **WORK["env_kwargs"]))
    if isinstance(env.action_space, gym.spaces.Box):
        env = gym.wrappers.ClipAction(env)
    if WORK["normalise_observations"]:
        env = gym.wrappers.NormalizeObservation(env)
        env = gym.wrappers.TransformObservation(env, lambda seen: np.clip(seen, -10, 10), env.observation_space)
    if WORK["normalise_rewards"]:
        env = gym.wrappers.NormalizeReward(env, gamma=WORK["gamma"])
        env = gym.wrappers.TransformReward(env, lambda reward: np.clip(reward, -10, 10))
    return env


class SyncEnvs:
    """gymnasium's envs, one after another, each reset in the step that ends it, as when CleanRL was written."""

    def __init__(self) -> None:
        mode = gym.vector.AutoresetMode.SAME_STEP
        self._envs = gym.vector.SyncVectorEnv([make_env] * WORK["num_envs"], autoreset_mode=mode)
        self.observation_space, self.action_space = self._envs.single_observation_space, self._envs.single_action_space
        self.returns: deque[float] = deque(maxlen=LAST_EPISODES)

    def reset(self) -> np.ndarray:
        return self._envs.reset(seed=WORK["seed"])[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen, rewards, terminated, truncated, infos = self._envs.step(actions)
        if "final_info" in infos:
            episodes = infos["final_info"]["episode"]
            self.returns.extend(episodes["r"][infos["final_info"]["_episode"]])
        return seen, rewards, terminated | truncated


class PooledEnvs:
    """EnvPool's. The step in which it resets an ended env counts as one of the episode, as in CleanRL."""

    def __init__(self) -> None:
        make = importlib.import_module("envpool").make
        self._envs = make(
            WORK["env"], env_type="gymnasium", num_envs=WORK["num_envs"], seed=WORK["seed"], **WORK["pool"]
        )
        self.observation_space, self.action_space = self._envs.observation_space, self._envs.action_space
        self.returns: deque[float] = deque(maxlen=LAST_EPISODES)
        self._totals = np.zeros(WORK["num_envs"])

    def reset(self) -> np.ndarray:
        return self._envs.reset()[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen, rewards, terminated, truncated, info = self._envs.step(actions)
        ended = terminated | truncated
        self._totals += info.get("reward", rewards)  # of a game: before it is clipped
        over = ended & (info["terminated"].astype(bool) | truncated) if "lives" in info else ended
        self.returns.extend(self._totals[over])
        self._totals[over] = 0.0
        return seen, rewards, ended


def layer(module: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> nn.Module:
    nn.init.orthogonal_(module.weight, gain)
    nn.init.zeros_(module.bias)
    return module


def mlp(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    activation = {"tanh": nn.Tanh, "relu": nn.ReLU}[WORK["activation"]]
    sizes = [inputs, *WORK["hidden_sizes"]]
    hidden = [part for a, b in itertools.pairwise(sizes) for part in (layer(nn.Linear(a, b)), activation())]
    return nn.Sequential(*hidden, layer(nn.Linear(sizes[-1], outputs), gain))


class Agent(nn.Module):
    def __init__(self, envs: SyncEnvs | PooledEnvs) -> None:
        super().__init__()
        shape, action_space = envs.observation_space.shape, envs.action_space
        self.is_discrete = isinstance(action_space, gym.spaces.Discrete)
        num_actions = int(action_space.n) if self.is_discrete else int(np.prod(action_space.shape))
        self.torso: nn.Module = nn.Identity()
        if len(shape) == 3:  # frames of a game
            convolutions = nn.Sequential(
                *(layer(nn.Conv2d(shape[0], 32, 8, 4)), nn.ReLU(), layer(nn.Conv2d(32, 64, 4, 2)), nn.ReLU()),
                *(layer(nn.Conv2d(64, 64, 3, 1)), nn.ReLU(), nn.Flatten()),
            )
            size = convolutions(torch.zeros(1, *shape)).shape[1]
            self.torso = nn.Sequential(convolutions, layer(nn.Linear(size, 512)), nn.ReLU())
            self.actor, self.critic = layer(nn.Linear(512, num_actions), 0.01), layer(nn.Linear(512, 1), 1.0)
        else:
            self.actor, self.critic = mlp(shape[0], num_actions, 0.01), mlp(shape[0], 1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(0 if self.is_discrete else num_actions))
        self.scale = 255.0 if envs.observation_space.dtype == np.uint8 else 1.0

    def value(self, seen: torch.Tensor) -> torch.Tensor:
        return self.critic(self.torso(seen / self.scale)).flatten()

    def act(self, seen: torch.Tensor, action: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        features = self.torso(seen / self.scale)
        scores = self.actor(features)
        if self.is_discrete:
            chosen = Categorical(logits=scores)
        else:
            chosen = Independent(Normal(scores, self.log_std.exp()), 1)
        action = chosen.sample() if action is None else action
        return action, chosen.log_prob(action), chosen.entropy(), self.critic(features).flatten()


def advantages_of(
    rewards: torch.Tensor, values: torch.Tensor, ended: torch.Tensor, last_value: torch.Tensor, last_ended: torch.Tensor
) -> torch.Tensor:
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(last_value)
    for t in reversed(range(len(rewards))):
        is_last = t == len(rewards) - 1
        goes_on = 1.0 - (last_ended if is_last else ended[t + 1])
        delta = rewards[t] + WORK["gamma"] * goes_on * (last_value if is_last else values[t + 1]) - values[t]
        advantages[t] = running = delta + WORK["gamma"] * WORK["gae_lambda"] * goes_on * running
    return advantages


def loss_of(agent: Agent, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    clip = WORK["clip_range"]
    _, log_probs, entropy, values = agent.act(batch["seen"], batch["actions"])
    ratio = (log_probs - batch["log_probs"]).exp()
    advantages = batch["advantages"]
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    policy_loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    errors = (values - batch["returns"]) ** 2
    if WORK["clip_value_loss"]:
        clipped = batch["values"] + (values - batch["values"]).clamp(-clip, clip)
        errors = torch.max(errors, (clipped - batch["returns"]) ** 2)
    return policy_loss - WORK["entropy_coef"] * entropy.mean() + WORK["value_coef"] * 0.5 * errors.mean()


def main() -> None:
    torch.manual_seed(WORK["seed"])
    torch.set_num_threads(WORK["threads"])
    rng = np.random.default_rng(WORK["seed"])
    envs = PooledEnvs() if WORK["pool"] is not None else SyncEnvs()
    num_steps, num_envs = WORK["num_steps"], WORK["num_envs"]
    agent = Agent(envs)
    optimiser = torch.optim.Adam(agent.parameters(), lr=WORK["learning_rate"], eps=1e-5)
    seen = torch.zeros(num_steps, num_envs, *envs.observation_space.shape)
    actions = torch.zeros(num_steps, num_envs, *envs.action_space.shape)
    log_probs, rewards, ended, values = (torch.zeros(num_steps, num_envs) for _ in range(4))
    next_seen, next_ended = torch.Tensor(envs.reset()), torch.zeros(num_envs)
    clock, taken = Clock(warm_up_steps=WORK["warm_up_steps"]), 0
    while not clock.is_over(taken):
        if WORK["anneal"] and WORK["learn_steps"]:
            optimiser.param_groups[0]["lr"] = WORK["learning_rate"] * (1 - taken / WORK["learn_steps"])
        for t in range(num_steps):
            seen[t], ended[t] = next_seen, next_ended
            with torch.no_grad():
                actions[t], log_probs[t], _, values[t] = agent.act(next_seen)
            chosen = actions[t].long() if agent.is_discrete else actions[t]
            shown, earned, over = envs.step(chosen.numpy())
            rewards[t] = torch.tensor(earned)
            next_seen, next_ended = torch.Tensor(shown), torch.Tensor(over)
        taken += num_steps * num_envs
        with torch.no_grad():
            advantages = advantages_of(rewards, values, ended, agent.value(next_seen), next_ended)
        named = {"seen": seen, "actions": actions, "log_probs": log_probs, "values": values}
        named |= {"advantages": advantages, "returns": advantages + values}
        flat = {name: item.flatten(0, 1) for name, item in named.items()}
        for _ in range(WORK["epochs"]):
            for rows in np.array_split(rng.permutation(num_steps * num_envs), WORK["num_minibatches"]):
                loss = loss_of(agent, {name: item[rows] for name, item in flat.items()})
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), WORK["max_grad_norm"])
                optimiser.step()
    clock.tell(envs.returns)


if __name__ == "__main__":
    main()
