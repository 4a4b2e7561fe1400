"""Env shards in a checkpoint: exact where a round trip says so, and refused everywhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import pytest
from safetensors.numpy import load, save

from rollcall.actors.control.state import is_exact
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_vector_env
from tests.needs import require


def exact(num_envs: int = 3, **settings: Any) -> bool:
    return is_exact(partial(make_vector_env, EnvConfig(**settings), num_envs))


@pytest.mark.parametrize(
    "settings",
    [
        {"id": "CartPole-v1", "vectorization": "native"},
        {"id": "CartPole-v1", "vectorization": "sync"},
        {"id": "CartPole-v1", "vectorization": "sync", "autoreset": "next_step"},
        {"id": "FrozenLake-v1"},
        {"id": "Pendulum-v1"},
        {"id": "Acrobot-v1", "frame_stack": 3},
        {"id": "rollcall.actors.envs.environment:cartpole_masked"},
    ],
    ids=str,
)
def test_these_envs_go_on_exactly_after_a_round_trip(settings: dict[str, Any]) -> None:
    assert exact(**settings)


def test_mujoco_goes_on_exactly_after_a_round_trip() -> None:
    require("mujoco")
    assert exact(id="HalfCheetah-v5", num_envs=2)
    assert exact(id="Humanoid-v5", num_envs=1), "it shows what a step leaves behind beside the physics"


def test_envs_in_processes_of_their_own_are_not_claimed_to_be_exact() -> None:
    assert not exact(id="CartPole-v1", vectorization="async")


FORGETFUL = {
    "pickles cleanly and forgets": """
        class Env(Base):
            def __getstate__(self):
                return {}

            def reset(self, *, seed=None, options=None):
                self.hidden = iter(range(10**9))
                return super().reset(seed=seed)

            def wind(self):
                return next(self.hidden)
        """,
    "holds what a C library made, whose type knows no module": """
        class Type(type):  # as SWIG's, which Box2D is bound with
            @property
            def __module__(cls):
                raise AttributeError("__module__")

        class World(metaclass=Type):
            __slots__ = ("__weakref__",)
            def __reduce_ex__(self, protocol):
                raise TypeError("cannot pickle")

        class Env(Base):
            def __init__(self):
                self.world = World()
        """,
    "keeps its state in a closure": """
        def counter():
            t = 0
            def wind():
                nonlocal t
                t += 1
                return t
            return wind

        class Env(Base):
            def __init__(self):
                self.wind = counter()
        """,
    "keeps its state in its module": """
        TOTAL = [0]

        class Env(Base):
            def wind(self):
                TOTAL[0] += 1
                return TOTAL[0]
        """,
    "draws its next episode from a hidden stream": """
        class Env(Base):
            def __init__(self):
                self.draw = (lambda random: lambda: random.random())(np.random.default_rng())

            def reset(self, *, seed=None, options=None):
                shown, info = super().reset(seed=seed)
                self.position = self.draw()
                return np.array([self.position]), info
        """,
    "gives NaN now and then": """
        class Env(Base):
            def wind(self):
                return np.nan if self.np_random.random() < 0.05 else 0.0
        """,
    "raises now and then": """
        class Env(Base):
            def wind(self):
                if self.np_random.random() < 0.05:
                    raise RuntimeError("the wheel is stuck")
                return 0.0
        """,
}


@pytest.mark.parametrize("source", FORGETFUL.values(), ids=FORGETFUL.keys())
def test_an_env_that_forgets_its_state_is_refused_as_not_exact(user_module: Callable[[str], str], source: str) -> None:
    base = """
        class Base(gym.Env):
            observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
            action_space = spaces.Discrete(2)
            position = 0.0

            def reset(self, *, seed=None, options=None):
                gym.Env.reset(self, seed=seed)
                self.position = float(self.np_random.random())
                return np.array([self.position]), {}

            def wind(self):
                return 0.0

            def step(self, action):
                self.position += action + self.wind()
                return np.array([self.position]), 1.0, False, False, {}
        """
    module = user_module(base + source)
    assert not exact(id=f"{module}:Env")
    assert exact(id=f"{module}:Base"), "without what was added it is exact"


def test_state_of_many_kinds_comes_back(user_module: Callable[[str], str]) -> None:
    module = user_module(
        """
        import collections, enum, random

        class Light(enum.Enum):
            RED = 1
            GREEN = 2

        class Part:
            __slots__ = ("heat",)
            def __init__(self):
                self.heat = 0.0

        class Zoo(gym.Env):
            observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
            action_space = spaces.Discrete(2)

            def __init__(self):
                self.part, self.parts = Part(), {"a": Part(), 1: [Part()]}
                self.random, self.old_random = random.Random(3), np.random.RandomState(4)
                self.light = Light.RED
                self.grid = np.zeros((3, 4), order="F")
                self.row = self.grid[1]  # a view
                self.me = self
                self.counts = collections.Counter()

            def reset(self, *, seed=None, options=None):
                super().reset(seed=seed)
                self.recent = collections.deque([0.0], maxlen=3)
                self.seen = {"x": (1, 2.5, np.float32(0.1)), (0, 1): None}
                self.text, self.raw = np.array(["", "abc"]), np.zeros(2, complex)
                return self.show(), {}

            def show(self):
                more = self.part.heat + self.parts["a"].heat + self.parts[1][0].heat + float(self.seen["x"][2])
                return np.array([sum(self.recent), self.grid.sum() + self.light.value, more, self.counts["up"]])

            def step(self, action):
                self.light = Light.GREEN if self.light is Light.RED else Light.RED
                self.row += self.np_random.random() + self.random.random() + self.old_random.rand()
                self.recent.append(float(self.row[0]))
                self.seen["x"] = (1, 2.5, np.float32(self.seen["x"][2] * 1.1))
                self.part.heat += 1.0
                self.parts["a"].heat += self.me.part.heat
                self.parts[1][0].heat -= action
                self.counts["up"] += int(action)
                return self.show(), 0.0, False, len(self.recent) > 5, {}
        """
    )
    assert exact(id=f"{module}:Zoo")


def test_shards_go_on_exactly_in_another_actor(make_actor: Any, make_ticket: Any) -> None:
    for env in ("CartPole-v1", "Pendulum-v1"):
        space = gym.spaces.Discrete(2) if env == "CartPole-v1" else gym.spaces.Box(-2, 2, (1,))
        actor = make_actor(env, space, recurrent=True, num_shards=2)
        for i in range(4):
            actor.produce(make_ticket(i, shard=i % 2))
        saved = actor.shard_states()
        assert saved is not None
        tensors, meta = load(save(saved[0])), json.loads(json.dumps(saved[1]))
        expected = [actor.produce(make_ticket(i, shard=i % 2)) for i in range(4, 8)]
        # Each of two actors takes all shards, and builds the one whose tickets it gets.
        restored = [make_actor(env, space, recurrent=True, num_shards=2, actor_id=f"gym-{i}") for i in range(2)]
        for other in restored:
            other.restore_shards(tensors, meta)
        found = [restored[i % 2].produce(make_ticket(i, shard=i % 2)) for i in range(4, 8)]
        assert [item.digest() for _, item in found] == [item.digest() for _, item in expected]
        assert [summary.episodes for summary, _ in found] == [summary.episodes for summary, _ in expected]
        states = [other.shard_states() for other in restored]
        assert [list(state[1]) for state in states if state] == [["0"], ["1"]]


def test_a_newer_incarnation_does_not_take_the_restored_state(make_actor: Any, make_ticket: Any) -> None:
    actor = make_actor("CartPole-v1")
    actor.produce(make_ticket(0))
    saved = actor.shard_states()
    assert saved is not None
    fresh, restored = make_actor("CartPole-v1"), make_actor("CartPole-v1")
    restored.restore_shards(*saved)
    expected = fresh.produce(make_ticket(1, incarnation=1))[1]
    assert restored.produce(make_ticket(1, incarnation=1))[1].digest() == expected.digest()


def test_a_shard_saved_by_another_release_begins_new_episodes_with_a_word(
    make_actor: Any, make_ticket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What a release keeps in its own objects is not what the next one does."""
    actor = make_actor("CartPole-v1")
    actor.produce(make_ticket(0))
    tensors, meta = actor.shard_states()
    group = meta["0"]["tree"][2]["group"][2]
    del group["_steps"]
    restored = make_actor("CartPole-v1")
    restored.restore_shards(tensors, meta)
    with caplog.at_level("WARNING", logger="rollcall.actors"):
        _, trajectory = restored.produce(make_ticket(1))
    assert trajectory.steps.episode_starts[0].all()
    assert "shard 0 begins anew: its saved state is not of envs as they are now" in caplog.text


def test_an_actor_whose_envs_cannot_be_captured_says_so(make_actor: Any, make_ticket: Any) -> None:
    actor = make_actor(EnvConfig(id="CartPole-v1", vectorization="async"), num_envs=2)
    assert actor.shard_states() == ({}, {}), "there is nothing yet"
    actor.produce(make_ticket(0))
    assert actor.shard_states() is None
    actor.close()


def test_nothing_is_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("pickled")

    for name in ("dumps", "loads", "dump", "load", "Pickler", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", refuse)
    assert exact(id="CartPole-v1", vectorization="sync")
