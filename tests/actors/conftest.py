"""A small policy in numpy that satisfies the actors' protocol, a source of its weights, and modules with envs as a user
would write them, importable from the working directory."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rollcall.actors.control.actors_config import ActorsConfig
from rollcall.actors.control.gym_actor import GymActor
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.attempt import Header, ShardPayload, Ticket, Unit
from rollcall.cluster.messages.weights import Weights, pack_weights
from rollcall.cluster.seeds import derive_seed

HIDDEN = 3


class NumpyRollout:
    """Scores of actions are a fixed function of what was seen (and remembered) plus Gumbel noise."""

    def __init__(self, policy: NumpyPolicy, num_steps: int, num_envs: int, seed: int, state: Any, greedy: bool) -> None:
        self._policy = policy
        noise = np.random.default_rng(seed).gumbel(size=(num_steps, num_envs, policy.num_scores))
        self._noise = np.zeros_like(noise) if greedy else noise
        self._state = None if state is None else state.copy()
        self._logprobs: list[Array] = []

    def act(
        self, observations: Mapping[str, Array], *, episode_starts: Array, action_mask: Array | None = None
    ) -> tuple[Array, Array]:
        assert all(np.isfinite(item).all() for item in observations.values())
        flat = [np.asarray(item, np.float64).reshape(len(item), -1) for item in observations.values()]
        seen = np.concatenate(flat, axis=1)
        mixed = np.sin(seen @ np.linspace(1.0, 9.0, seen.shape[1]) * self._policy.gain)
        if self._state is not None:
            self._state[:, episode_starts] = 0.0
            self._state[0] = np.tanh(0.5 * self._state[0] + mixed[:, None] * np.arange(1, HIDDEN + 1))
            mixed = mixed + self._state[0].sum(axis=1)
        scores = np.sin(mixed[:, None] * np.arange(1, self._policy.num_scores + 1))
        if action_mask is not None:
            scores = np.where(action_mask, scores, -np.inf)
        noise = self._noise[len(self._logprobs)]
        return self._policy.choose(scores, noise, self._logprobs)

    def behaviour_logprobs(self) -> Array:
        return np.array(self._logprobs, np.float32)

    def recurrent_state(self) -> Array | None:
        return self._state


@dataclass
class NumpyPolicy:
    action_space: gym.Space[Any]
    recurrent: bool = False
    version: int = -1
    gain: float = 1.0
    loads: int = 0

    @property
    def num_scores(self) -> int:
        space = self.action_space
        if isinstance(space, gym.spaces.Discrete):
            return int(space.n)
        if isinstance(space, gym.spaces.MultiDiscrete):
            return int(space.nvec.sum())
        return int(np.prod(space.shape or ()))

    def load(self, weights: Weights) -> None:
        self.gain = float(dict(weights.tensors())["gain"][0])
        self.version = weights.version
        self.loads += 1

    def initial_recurrent_state(self, num_envs: int) -> Array | None:
        return np.zeros((1, num_envs, HIDDEN), np.float32) if self.recurrent else None

    def rollout(
        self,
        *,
        num_steps: int,
        num_envs: int,
        seed: int,
        recurrent_state: Array | None,
        greedy: bool = False,
        first_env: int = 0,
    ) -> NumpyRollout:
        return NumpyRollout(self, num_steps, num_envs, seed, recurrent_state, greedy)

    def choose(self, scores: Array, noise: Array, logprobs: list[Array]) -> tuple[Array, Array]:
        space = self.action_space
        if isinstance(space, gym.spaces.Box):
            actions = (2.0 * scores + 0.1 * noise).astype(np.float32)
            logprobs.append(-np.abs(noise).sum(axis=1))
            return actions, np.clip(actions, space.low.reshape(-1), space.high.reshape(-1)).reshape(-1, *space.shape)
        assert isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete)
        sizes = [int(space.n)] if isinstance(space, gym.spaces.Discrete) else space.nvec.reshape(-1).tolist()
        parts = np.split(np.arange(self.num_scores), np.cumsum(sizes)[:-1])
        picks = np.stack([(scores + noise)[:, part].argmax(axis=1) for part in parts], axis=1)
        logits = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        logprobs.append(np.take_along_axis(logits, picks, axis=1).sum(axis=1))
        picks = picks[:, 0] if isinstance(space, gym.spaces.Discrete) else picks
        return picks, picks + space.start


@dataclass
class Source:
    """Publishes the versions it was given; remembers what it was asked."""

    versions: dict[int, list[Weights]] = field(default_factory=dict)  # by epoch
    asked: list[tuple[int, int]] = field(default_factory=list)

    def publish(self, version: int, epoch: int = 1, gain: float = 1.0) -> None:
        tensors = {"gain": np.array([gain], np.float32)}
        self.versions.setdefault(epoch, []).append(pack_weights("policy", epoch, version, tensors))

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
        self.asked.append((epoch, newer_than))
        newer = [item for item in self.versions.get(epoch, []) if item.version > newer_than]
        return newer[-1] if newer else None


MakeActor = Callable[..., GymActor]
MakeTicket = Callable[..., Ticket]


@pytest.fixture
def source() -> Source:
    result = Source()
    result.publish(0)
    return result


@pytest.fixture
def numpy_policy() -> type[NumpyPolicy]:
    return NumpyPolicy


@pytest.fixture
def make_actor(source: Source) -> MakeActor:
    def make(
        env: EnvConfig | str,
        action_space: gym.Space[Any] | None = None,
        *,
        recurrent: bool = False,
        run_seed: int = 7,
        actor_id: str = "gym-0",
        can_go_back: bool = False,
        **settings: Any,
    ) -> GymActor:
        config = EnvConfig(id=env) if isinstance(env, str) else env
        space = gym.spaces.Discrete(2) if action_space is None else action_space
        return GymActor(
            actor_id=actor_id,
            run_seed=run_seed,
            env_config=config,
            config=ActorsConfig(**{"num_envs": 4, "unroll_length": 32, "ticket_deadline_s": 10.0} | settings),
            policy_factory=lambda: NumpyPolicy(space, recurrent),
            weights_source=source,
            can_go_back=can_go_back,
        )

    return make


@pytest.fixture
def make_ticket() -> MakeTicket:
    def make(
        ticket_id: int,
        *,
        shard: int = 0,
        incarnation: int = 0,
        unit: Unit = "fragment",
        version: int = 0,
        epoch: int = 1,
        deadline_s: float = 10.0,
    ) -> Ticket:
        payload = ShardPayload(shard, incarnation, unit)
        header = Header(ticket_id, 1, epoch, "policy")
        return Ticket(header, derive_seed(7, "ticket", ticket_id), version, payload.shard, payload, deadline_s)

    return make


@pytest.fixture
def user_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[str], str]:
    """Writes a module into the working directory; returns its name, which no other test uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> str:
        name = f"user_{abs(hash(request.node.nodeid))}_{len(list(tmp_path.iterdir()))}"
        header = "import gymnasium as gym\nimport numpy as np\nfrom gymnasium import spaces\n\n"
        (tmp_path / f"{name}.py").write_text(header + textwrap.dedent(source))
        return name

    return write


@pytest.fixture
def counter_module(user_module: Callable[[str], str]) -> str:
    """An env that shows how often it was stepped in its episode, and which episode it is. It may misbehave."""
    return user_module(
        """
        class Counter(gym.Env):
            observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
            action_space = spaces.Discrete(2)

            def __init__(self, length=5, raise_at=None, nan_at=None, nan_in="reward", hang_at=None, only_some=True):
                self.length, self.raise_at, self.nan_at, self.nan_in = length, raise_at, nan_at, nan_in
                self.hang_at, self.only_some = hang_at, only_some
                self.episode = self.total = 0

            def reset(self, *, seed=None, options=None):
                super().reset(seed=seed)
                self.episode += 1
                self.t = 0
                # Envs of some seeds, and not of others, misbehave.
                self.does = not self.only_some or self.np_random_seed % 5 < 2
                return self.show(), {}

            def show(self):
                return np.array([self.t, self.episode], np.float64)

            def step(self, action):
                self.t += 1
                self.total += 1
                if self.does and self.total == self.raise_at:
                    raise RuntimeError("the arm fell off")
                if self.does and self.total == self.hang_at:
                    import time
                    time.sleep(1.2)
                observation, reward = self.show(), float(self.t)
                if self.does and self.total == self.nan_at:
                    if self.nan_in == "reward":
                        reward = float("nan")
                    else:
                        observation[1] = float("inf")
                return observation, reward, False, self.t >= self.length, {}
        """
    )
