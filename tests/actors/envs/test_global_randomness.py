"""What an env draws from Python's and numpy's global generators derives from the run's seed and from its own place,
however it is stepped and whoever shares its process."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from rollcall.actors.control.state import is_exact
from rollcall.actors.envs import global_randomness
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env, make_vector_env
from rollcall.actors.envs.global_randomness import GlobalRandomness
from rollcall.actors.envs.vector_env_group import VectorEnvGroup

_ENV = '''
import random

class Reach(gym.Env):
    """Everything about it is drawn from the global generators, as in many envs that people wrote."""
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, raise_at=None):
        self.place, self.raise_at = np.random.random(), raise_at

    def reset(self, *, seed=None, options=None):
        self.t, self.goal = 0, random.random()
        return self.show()

    def step(self, action):
        self.t += 1
        if self.t == self.raise_at:
            raise RuntimeError("the arm fell off")
        observation, info = self.show()
        return observation, 1.0, False, self.t >= 3, info

    def show(self):
        return np.array([self.place, self.goal, np.random.normal() + random.gauss(0, 1)]), {}

class Reaches(gym.vector.VectorEnv):
    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.single_action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.random.random((self.num_envs, 1)), {}

    def step(self, actions):
        none = np.zeros(self.num_envs, bool)
        return np.random.random((self.num_envs, 1)), np.ones(self.num_envs), none, none, {}

def reaches():
    raise AssertionError("only many at once are made")

reaches.vector_entry_point = Reaches
'''


@pytest.fixture
def module(user_module: Callable[[str], str]) -> str:
    return user_module(_ENV)


def seen(config: EnvConfig, num_envs: int, *, seed: int = 1, num_steps: int = 9, max_restarts: int = 0) -> np.ndarray:
    """[num_steps + 1, num_envs, ...]: what the envs show."""
    group = make_vector_env(config, num_envs, seed=seed, max_restarts=max_restarts)
    try:
        shown = [np.array(group.reset().observations["observation"])]
        for _ in range(num_steps):
            step = group.step(np.zeros(num_envs, np.int64))
            shown.append(np.array(step.observations["observation"]))
        return np.array(shown)
    finally:
        group.close()


def test_envs_in_processes_of_their_own_draw_64_different_starts_and_the_same_as_one_after_another(module: str) -> None:
    one_after_another = seen(EnvConfig(id=f"{module}:Reach", vectorization="sync"), 4, num_steps=45)
    processes = seen(EnvConfig(id=f"{module}:Reach", vectorization="async"), 4, num_steps=45)
    assert processes.tobytes() == one_after_another.tobytes()
    assert len(np.unique(processes[..., 1])) == 4 * 16, "episodes of three steps: 16 starts of each env"
    assert len(np.unique(processes[..., 0])) == 4, "drawn while it was made"


@pytest.mark.parametrize("env", ["Reach", "reaches"])
def test_the_same_seed_gives_the_same_draws_and_another_seed_others(module: str, env: str) -> None:
    config = EnvConfig(id=f"{module}:{env}", vectorization="native" if env == "reaches" else "sync")
    assert seen(config, 3).tobytes() == seen(config, 3).tobytes()
    assert not np.isin(seen(config, 3, seed=2), seen(config, 3)).any()


def test_what_else_the_process_draws_changes_nothing_and_is_not_changed(module: str) -> None:
    config = EnvConfig(id=f"{module}:Reach", vectorization="sync")
    alone = seen(config, 2)
    random.seed(5)
    np.random.seed(5)
    expected = [random.random(), random.gauss(0, 1), np.random.random()]
    random.seed(5)
    np.random.seed(5)
    drawn = [random.random()]
    assert seen(config, 2).tobytes() == alone.tobytes()
    drawn += [random.gauss(0, 1)]
    assert seen(config, 2).tobytes() == alone.tobytes()
    drawn += [np.random.random()]
    assert drawn == expected


def test_shards_that_share_a_process_do_not_share_draws(module: str, make_actor: Any, make_ticket: Any) -> None:
    """So serial and Ray runs agree, with any number of actors."""
    config = EnvConfig(id=f"{module}:Reach", vectorization="sync")

    def units(order: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        actor = make_actor(config, num_envs=4, num_shards=2)
        result = {}
        for shard, ticket_id in order:
            _, trajectory = actor.produce(make_ticket(ticket_id, shard=shard))
            result[shard, ticket_id] = trajectory.steps.observations["observation"].tobytes()
        actor.close()
        return result

    together, apart = units([(0, 0), (1, 1), (0, 2), (1, 3)]), units([(1, 1), (1, 3), (0, 0), (0, 2)])
    assert together == apart
    assert len(set(together.values())) == 4


def test_gymnasiums_own_vector_envs_are_left_bare_for_they_draw_nothing_from_the_global_generators() -> None:
    group = make_vector_env(EnvConfig(id="CartPole-v1"), 4, seed=1)
    assert isinstance(group, VectorEnvGroup) and isinstance(group._env, CartPoleVectorEnv)
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    group.reset()
    starts = sum(group.step(np.ones(4, np.int64)).episode_starts.sum() for _ in range(50))
    assert starts > 4, "episodes that began anew are among them"
    assert (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()) == before
    group.close()


def test_an_env_that_is_made_again_draws_anew(module: str) -> None:
    config = EnvConfig(id=f"{module}:Reach", kwargs={"raise_at": 2}, vectorization="sync")
    places = seen(config, 2, max_restarts=10)[..., 0]
    assert len(np.unique(places)) > 4


def test_global_draws_are_part_of_an_exact_checkpoint(module: str) -> None:
    assert is_exact(
        lambda *, seed: make_vector_env(EnvConfig(id=f"{module}:Reach", vectorization="sync"), 2, seed=seed)
    )


def test_a_reset_with_a_seed_seeds_the_global_generators_as_it_does_the_envs_own(module: str) -> None:
    env = make_env(EnvConfig(id=f"{module}:Reach"))
    first = env.reset(seed=3)[0].tolist()
    assert env.reset(seed=4)[0].tolist() != first
    assert env.reset(seed=3)[0].tolist() == first


def test_a_python_whose_generators_memory_is_not_known_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws() -> list[float]:
        own = GlobalRandomness(3)
        numbers = []
        for _ in range(3):
            with own:
                numbers += [random.random(), random.gauss(0, 1), random.randint(0, 10**9), np.random.normal()]
        return numbers

    assert global_randomness._shared_words is not None, "CPython's is known"
    known = draws()
    monkeypatch.setattr(global_randomness, "_shared_words", None)
    assert draws() == known
