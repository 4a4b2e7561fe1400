"""Every way of stepping and resetting envs gives the learner the same experience."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rollcall.actors.control.unroll import UnitOfExperience, begin_shard, unroll
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env, make_vector_env
from rollcall.actors.envs.local_group import LocalGroup
from rollcall.actors.envs.vector import EnvGroup, Restarts
from rollcall.actors.envs.vector_env_group import VectorEnvGroup
from rollcall.cluster.errors import EnvFailure
from rollcall.cluster.messages.arrays import Array
from tests.waiting import eventually

Transition = tuple[bytes, bytes, float, bool, bool, bytes]
SEED = 11


def gymnasium_sync(config: EnvConfig, num_envs: int, mode: AutoresetMode) -> EnvGroup:
    make = partial(SyncVectorEnv, [partial(make_env, config)] * num_envs, autoreset_mode=mode)
    return VectorEnvGroup(make, seed=SEED)


def experience(group: EnvGroup, policy: Any, num_steps: int) -> UnitOfExperience:
    """What an observation-determined policy experiences: the same in the same state, whatever the step's number."""
    shard = begin_shard(0, 0, group)
    rollout = policy(group.action_space, gain=50.0).rollout(
        num_steps=num_steps, num_envs=group.num_envs, seed=0, recurrent_state=None, greedy=True
    )
    result = unroll(shard, rollout, num_steps=num_steps, unit="fragment")
    group.close()
    return result


def transitions(result: UnitOfExperience) -> list[list[Transition]]:
    """Per env: (what it showed, action, reward, terminated, truncated, what it showed after), dead steps left out."""
    (name,) = result.steps.observations
    shown, num_steps = result.steps.observations[name], len(result.steps.mask)
    finals = {
        (int(t), int(b)): row
        for (t, b), row in zip(result.unroll.final_index, result.unroll.final_observations[name], strict=True)
    }
    per_env: list[list[Transition]] = []
    for b in range(result.steps.mask.shape[1]):
        found = []
        for t in np.flatnonzero(result.steps.mask[:, b]).tolist():
            ended = bool(result.steps.terminated[t, b] or result.steps.truncated[t, b])
            assert ((t, b) in finals) == ended
            following = shown[t + 1, b] if t + 1 < num_steps else result.unroll.last_observations[name][b]
            after: Array = finals[t, b] if ended else following
            found.append(
                (
                    shown[t, b].tobytes(),
                    result.steps.actions[t, b].tobytes(),
                    float(result.steps.rewards[t, b]),
                    bool(result.steps.terminated[t, b]),
                    bool(result.steps.truncated[t, b]),
                    after.tobytes(),
                )
            )
        per_env.append(found)
    return per_env


def assert_same_beginning(one: list[list[Transition]], other: list[list[Transition]], at_least: int) -> None:
    for a, b in zip(one, other, strict=True):
        common = min(len(a), len(b))
        assert common >= at_least
        assert a[:common] == b[:common]


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1"])
def test_next_step_and_same_step_autoreset_give_identical_transitions(env: str, numpy_policy: Any) -> None:
    config = EnvConfig(id=env, max_episode_steps=50)
    groups = {
        "gymnasium, next step": gymnasium_sync(config, 3, AutoresetMode.NEXT_STEP),
        "gymnasium, same step": gymnasium_sync(config, 3, AutoresetMode.SAME_STEP),
        "gymnasium, disabled": gymnasium_sync(config, 3, AutoresetMode.DISABLED),
        "ours, next step": LocalGroup(partial(make_env, config), 3, seed=SEED, next_step=True),
        "ours, same step": LocalGroup(partial(make_env, config), 3, seed=SEED),
    }
    found = {name: transitions(experience(group, numpy_policy, 300)) for name, group in groups.items()}
    reference = found.pop("ours, same step")
    assert sum(step[3] or step[4] for env_steps in reference for step in env_steps) > 9
    for other in found.values():
        assert_same_beginning(reference, other, 250)
    assert [len(steps) for steps in reference] == [300] * 3, "a same-step group has no dead steps"
    assert all(len(steps) < 300 for steps in found["ours, next step"])


def test_the_step_after_an_end_is_dead_in_next_step_mode_and_its_observation_begins_the_next_episode(
    numpy_policy: Any,
) -> None:
    result = experience(make_vector_env(EnvConfig(id="CartPole-v1"), 4, seed=SEED), numpy_policy, 120)
    ends = result.steps.terminated | result.steps.truncated
    assert ends[:-1].any()
    dead = np.zeros_like(ends)
    dead[1:] = ends[:-1]
    assert (result.steps.mask == ~dead).all()
    assert not result.steps.rewards[dead].any()
    assert not (ends & dead).any()
    starts = np.zeros_like(ends)
    starts[0], starts[1:] = True, dead[:-1]
    assert (result.steps.episode_starts == starts).all()
    assert (np.abs(result.steps.observations["observation"][starts]) <= 0.05).all(), (
        "CartPole begins within 0.05 of the middle"
    )


def test_sync_and_async_envs_give_the_same_experience(numpy_policy: Any) -> None:
    results = []
    for vectorization in ("sync", "async"):
        config = EnvConfig(id="CartPole-v1", vectorization=vectorization)
        results.append(experience(make_vector_env(config, 3, seed=SEED), numpy_policy, 100))
    one, other = results
    assert len(one.unroll.final_index) > 3
    assert transitions(one) == transitions(other)
    assert (one.steps.episode_starts == other.steps.episode_starts).all()
    assert one.episodes == other.episodes


def test_truncated_episode_carries_its_true_final_observation(numpy_policy: Any) -> None:
    """Against a single env in a literal loop, with the same seed and the same actions."""
    config = EnvConfig(id="Pendulum-v1", max_episode_steps=20)
    for autoreset in ("next_step", "same_step"):
        group = make_vector_env(config.model_copy(update={"autoreset": autoreset}), 1, seed=SEED)
        shown = group.reset([5])
        env = make_env(config)
        observation, _ = env.reset(seed=5)
        policy = numpy_policy(env.action_space)
        rollout = policy.rollout(num_steps=20, num_envs=1, seed=0, recurrent_state=None, greedy=True)
        observations = shown.observations
        for t in range(20):
            assert observations["observation"][0].tobytes() == observation.tobytes()
            _, actions = rollout.act(observations, episode_starts=np.zeros(1, bool))
            action = actions[0].copy()
            step = group.step(actions)
            observation, reward, terminated, truncated, _ = env.step(action)
            assert step.rewards[0] == np.float32(reward)
            assert (step.terminated[0], step.truncated[0]) == (terminated, truncated) == (False, t == 19)
            observations = step.observations
        assert step.final_envs.tolist() == [0]
        assert step.final_observations["observation"][0].tobytes() == observation.tobytes()
        if autoreset == "same_step":
            assert step.observations["observation"][0].tobytes() != observation.tobytes()
        group.close()


def test_native_envs_are_taken_where_registered_and_nothing_asks_otherwise() -> None:
    def kind(**settings: Any) -> tuple[str, str]:
        group = make_vector_env(EnvConfig(**settings), 2)
        inner = getattr(getattr(group, "_env", None), "unwrapped", None)
        group.close()
        return type(group).__name__, type(inner).__name__

    assert kind(id="CartPole-v1") == ("VectorEnvGroup", "CartPoleVectorEnv")
    assert kind(id="CartPole-v1", autoreset="same_step") == ("LocalGroup", "NoneType")
    assert kind(id="CartPole-v1", frame_stack=2) == ("LocalGroup", "NoneType")
    assert kind(id="CartPole-v1", vectorization="sync") == ("LocalGroup", "NoneType")
    assert kind(id="Pendulum-v1") == ("LocalGroup", "NoneType")


def test_slow_envs_get_processes_of_their_own(
    user_module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = user_module(
        """
        import time

        def slow():
            return gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: (time.sleep(0.001), reward)[1])
        """
    )
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    group = make_vector_env(EnvConfig(id=f"{module}:slow"), 2)
    assert type(getattr(group, "_env", None)).__name__ == "AsyncEnvs"
    group.reset()
    assert group.step(np.array([0, 1])).rewards.tolist() == [1.0, 1.0]
    group.close()


ORPHANS = """
import sys
import numpy as np
from rollcall.actors.envs.environment import EnvConfig, make_vector_env

if __name__ == "__main__":
    config = EnvConfig(id=sys.argv[1] + ":Counter", vectorization="async", kwargs={"hang_at": 1, "only_some": False})
    group = make_vector_env(config, 2)
    group.reset()
    print(*(process.pid for process in group._env.processes), flush=True)
    group.step(np.zeros(2, np.int64))
"""


def test_envs_in_processes_of_their_own_end_with_a_killed_actor_even_where_they_hang(
    counter_module: str, tmp_path: Path
) -> None:
    module = tmp_path / f"{counter_module}.py"
    module.write_text(module.read_text().replace("time.sleep(1.2)", "time.sleep(600)"))
    script = tmp_path / "actor.py"
    script.write_text(ORPHANS)
    actor = subprocess.Popen([sys.executable, script, counter_module], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert actor.stdout is not None
    envs = [int(pid) for pid in actor.stdout.readline().split()]
    assert len(envs) == 2
    time.sleep(0.3)
    actor.kill()
    actor.communicate(timeout=10)
    eventually(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in envs), what="the end of an env without its actor"
    )


def test_the_step_limit_given_replaces_the_envs_own_in_every_vectorization() -> None:
    for vectorization in ("native", "sync"):
        group = make_vector_env(EnvConfig(id="CartPole-v1", vectorization=vectorization, max_episode_steps=7), 2)
        group.reset()
        ends = [group.step(np.zeros(2, np.int64)).truncated.tolist() for _ in range(7)]
        assert ends == [[False, False]] * 6 + [[True, True]]


def test_a_hidden_velocity_stays_hidden_in_both_forms() -> None:
    for vectorization in ("native", "sync"):
        config = EnvConfig(id="rollcall.actors.envs.environment:cartpole_masked", vectorization=vectorization)
        group = make_vector_env(config, 3, seed=1)
        assert group.observation_space.shape == (2,)
        shown = group.reset()
        assert shown.observations["observation"].shape == (3, 2)
        step = group.step(np.ones(3, np.int64))
        assert step.observations["observation"].shape == (3, 2)
        assert group.observation_space.contains(step.observations["observation"][0])
    native, single = make_vector_env(config, 1, seed=1), make_env(config)
    assert native.observation_space == single.observation_space


def test_dict_observations_have_dotted_names_and_their_action_mask_is_taken_out(
    user_module: Callable[[str], str],
) -> None:
    module = user_module(
        """
        class Rooms(gym.Env):
            observation_space = spaces.Dict({
                "room": spaces.Discrete(3, start=1),
                "sensors": spaces.Dict({"left": spaces.Box(0, 1, (2,)), "image": spaces.Box(0, 255, (2, 2), np.uint8)}),
                "action_mask": spaces.MultiBinary(3),
            })
            action_space = spaces.Discrete(3)

            def show(self):
                mask = np.zeros(3, np.int8)
                if self.room < 3:
                    mask[self.room] = 1
                image = np.full((2, 2), self.room, np.uint8)
                sensors = {"left": np.full(2, self.room / 10), "image": image}
                return {"room": self.room, "sensors": sensors, "action_mask": mask}

            def reset(self, *, seed=None, options=None):
                self.room = 1
                return self.show(), {}

            def step(self, action):
                assert action == self.room
                self.room += 1
                return self.show(), 1.0, self.room == 3, False, {}
        """
    )
    for vectorization in ("sync", "async"):
        for autoreset in ("next_step", "same_step"):
            config = EnvConfig(id=f"{module}:Rooms", vectorization=vectorization, autoreset=autoreset)
            group = make_vector_env(config, 2)
            shown = group.reset()
            assert sorted(shown.observations) == ["room", "sensors.image", "sensors.left"]
            assert isinstance(group.observation_space, gym.spaces.Dict)
            assert "action_mask" not in group.observation_space.spaces
            assert shown.action_mask is not None
            assert shown.action_mask.tolist() == [[False, True, False]] * 2
            step = group.step(np.array([1, 1]))
            assert step.action_mask is not None
            assert step.action_mask.tolist() == [[False, False, True]] * 2
            step = group.step(np.array([2, 2]))
            assert step.terminated.all()
            assert step.final_observations["room"].tolist() == [3, 3]
            assert step.final_observations["sensors.image"].shape == (2, 2, 2)
            assert step.final_observations["sensors.left"].dtype == np.float32
            assert step.action_mask is not None
            # In next-step mode an end allows nothing and nobody acts; the policy is given a free choice of nothing.
            assert step.action_mask.all() if autoreset == "next_step" else step.action_mask[:, 1].all()
            group.close()


def test_an_action_mask_in_the_info_is_found_and_an_empty_one_is_the_envs_fault(
    user_module: Callable[[str], str],
) -> None:
    module = user_module(
        """
        class Narrow(gym.Env):
            observation_space = spaces.Discrete(9)
            action_space = spaces.MultiDiscrete([2, 3])

            def reset(self, *, seed=None, options=None):
                self.t = 0
                return 0, {"action_mask": (np.array([1, 0], np.int8), np.array([0, 1, 1], np.int8))}

            def step(self, action):
                self.t += 1
                mask = (np.array([0, 0], np.int8), np.array([0, 0, 0], np.int8)) if self.t == 2 else None
                return self.t, 0.0, False, False, {} if mask is None else {"action_mask": mask}
        """
    )
    group = make_vector_env(EnvConfig(id=f"{module}:Narrow"), 2)
    shown = group.reset()
    assert shown.action_mask is not None
    assert shown.action_mask.tolist() == [[True, False, False, True, True]] * 2
    step = group.step(np.zeros((2, 2), np.int64))
    assert step.action_mask is not None
    assert step.action_mask.all(), "no mask given: everything is allowed"
    with pytest.raises(EnvFailure, match=r"env 0 allows no action at its shard's step 2"):
        group.step(np.zeros((2, 2), np.int64))


def test_the_budget_of_restarts_ends_with_the_envs_own_traceback() -> None:
    restarts = Restarts("Arm-v0", 2)
    error = ZeroDivisionError("no arm")
    restarts.book("env 3", error)
    restarts.book("env 1", error)
    with pytest.raises(EnvFailure, match=r"(?s)Arm-v0: env 2 raised ZeroDivisionError: no arm.*budget of 2") as caught:
        restarts.book("env 2", error)
    assert caught.value.__cause__ is error
    assert restarts.total == 3


def test_the_group_adds_less_python_to_a_native_step_than_the_step_itself_has() -> None:
    """Counted, not timed: bytecodes of a step, over episodes that end and those that go on."""
    raw = gym.make_vec("CartPole-v1", num_envs=16, vectorization_mode="vector_entry_point")
    raw.reset(seed=0)
    group = make_vector_env(EnvConfig(id="CartPole-v1"), 16)
    group.reset()
    actions = np.random.default_rng(0).integers(0, 2, (100, 16))

    def bytecodes(step: Callable[[Array], Any]) -> float:
        count = 0

        def trace(frame: Any, event: str, argument: object) -> Any:
            nonlocal count
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            count += event == "opcode"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for action in actions:
                step(action)
        finally:
            sys.settrace(before)
        return count / len(actions)

    assert bytecodes(group.step) < 2 * bytecodes(raw.step)
