"""EnvPool's envs: the same experience as gymnasium's own envs from the same state, as one env alone, and as they were
before a checkpoint."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.evaluation_config import EvalConfig
from rollcall.actors.control.state import is_exact
from rollcall.actors.control.unroll import UnitOfExperience, begin_shard, unroll
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env, make_vector_env, spaces_of
from rollcall.actors.envs.local_group import LocalGroup
from rollcall.actors.envs.pool import REPLAYABLE
from rollcall.actors.envs.vector_env_group import VectorEnvGroup
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.weights import pack_weights
from tests.needs import needs, require

pytestmark = needs("envpool")

CARTPOLE = EnvConfig(id="envpool:CartPole-v1")
BREAKOUT = EnvConfig(id="envpool:Breakout-v5")


def balance(state: Any) -> int:
    """Keeps the pole up for hundreds of steps."""
    return int(state[2] + 0.3 * state[3] + 0.02 * state[0] + 0.05 * state[1] > 0)


def random_actions(num_steps: int, num_envs: int, choices: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(choices, size=(num_steps, num_envs))


@pytest.mark.parametrize("limit", [7, None])
def test_a_literal_loop_over_gymnasiums_own_env_gives_the_same_trajectories(limit: int | None) -> None:
    """Every episode is played again by gymnasium's CartPole from the state that the pool showed first. Its float32
    rounds the state that the pool goes on with, so the states agree to 1e-4, and the ends exactly."""
    num_envs = 3
    group = make_vector_env(CARTPOLE.model_copy(update={"max_episode_steps": limit}), num_envs, seed=5)
    assert isinstance(group, VectorEnvGroup)
    twins = [gym.make("CartPole-v1", max_episode_steps=limit, disable_env_checker=True) for _ in range(num_envs)]
    shown: Any = group.reset()
    actions = random_actions(300, num_envs, 2)
    ends = {"terminated": 0, "truncated": 0}
    begins = np.ones(num_envs, bool)
    for t in range(300):
        states = shown.observations["observation"].copy()
        for b in np.flatnonzero(begins):
            twins[b].reset(seed=0)
            twins[b].unwrapped.state = states[b].astype(np.float64)  # type: ignore[attr-defined]
        shown = group.step(actions[t])
        finals = dict(zip(shown.final_envs.tolist(), shown.final_observations.get("observation", ()), strict=True))
        for b, twin in enumerate(twins):
            state, reward, terminated, truncated, _ = twin.step(actions[t, b])
            assert (shown.rewards[b], shown.terminated[b], shown.truncated[b]) == (reward, terminated, truncated)
            ended = terminated or truncated
            np.testing.assert_allclose(
                finals[b] if ended else shown.observations["observation"][b], state, rtol=1e-3, atol=1e-4
            )
            assert shown.episode_starts[b] == ended == (b in finals)
            assert shown.mask[b], "an ended env is reset at once: no step is dead"
            ends["terminated"] += terminated
            ends["truncated"] += truncated
        begins = shown.episode_starts.copy()
    assert ends["truncated"] > 100 if limit else ends["terminated"] > 20


def test_an_episode_that_ends_in_its_last_allowed_step_is_terminated_and_truncated() -> None:
    """As in gymnasium. EnvPool by itself says truncated alone, which would bootstrap from a pole that has fallen."""
    always_left = np.zeros(1, np.int64)
    group = make_vector_env(CARTPOLE, 1, seed=1)
    group.reset([4])
    falls_after = next(t for t in range(1, 100) if group.step(always_left).terminated[0])
    group = make_vector_env(CARTPOLE.model_copy(update={"max_episode_steps": falls_after}), 1)
    group.reset([4])
    steps = [group.step(always_left) for _ in range(falls_after)]
    assert [bool(step.terminated[0]) for step in steps] == [bool(step.truncated[0]) for step in steps]
    assert steps[-1].terminated[0]


def test_the_envs_own_limit_truncates() -> None:
    group = make_vector_env(CARTPOLE, 1)
    shown: Any = group.reset([3])
    for t in range(1, 501):
        shown = group.step(np.array([balance(shown.observations["observation"][0])]))
        assert bool(shown.truncated[0]) == (t == 500)
        assert not shown.terminated[0]
    assert np.abs(shown.final_observations["observation"]).max() > np.abs(shown.observations["observation"]).max()


def test_seeds_decide_everything_whoever_else_is_in_the_pool_and_however_many_threads_it_has() -> None:
    def trace(seeds: list[int], **kwargs: Any) -> list[bytes]:
        config = CARTPOLE.model_copy(update={"kwargs": kwargs})
        group = make_vector_env(config, len(seeds), seed=9)
        shown: Any = group.reset(seeds)
        seen = [shown.observations["observation"][-1].tobytes()]
        for action in random_actions(80, 1, 2):
            shown = group.step(np.repeat(action, len(seeds)))
            seen.append(shown.observations["observation"][-1].tobytes() + bytes(shown.terminated[-1:]))
        return seen

    alone = trace([7])
    assert trace([1, 2, 7]) == alone == trace([3, 7], num_threads=2)
    assert trace([1, 2, 8]) != alone
    env = make_env(CARTPOLE)
    observation, _ = env.reset(seed=7)
    seen = [observation.tobytes()]
    for action in random_actions(80, 1, 2):
        observation, _, terminated, truncated, _ = env.step(action[0])
        if terminated or truncated:
            observation, _ = env.reset()
        seen.append(observation.tobytes() + bytes([terminated]))
    assert seen == alone
    one, other = (make_vector_env(CARTPOLE, 2, seed=seed).reset().observations["observation"] for seed in (1, 2))
    assert one.tobytes() != other.tobytes() and one[0].tobytes() != one[1].tobytes()


def play(config: EnvConfig, num_envs: int, num_steps: int, numpy_policy: Any, unit: Any = "fragment") -> Any:
    group = make_vector_env(config, num_envs, seed=3)
    policy = numpy_policy(group.action_space, gain=0.01)
    rollout = policy.rollout(num_steps=num_steps, num_envs=num_envs, seed=0, recurrent_state=None, greedy=True)
    found: UnitOfExperience = unroll(begin_shard(0, 0, group), rollout, num_steps=num_steps, unit=unit)
    return found


@pytest.mark.parametrize("unit", ["fragment", "episode"])
def test_the_pool_gives_the_same_experience_as_its_envs_one_after_another(numpy_policy: Any, unit: Any) -> None:
    pooled, one_by_one = (
        play(CARTPOLE.model_copy(update={"vectorization": way, "max_episode_steps": 50}), 3, 120, numpy_policy, unit)
        for way in ("native", "sync")
    )
    for name in ("actions", "rewards", "terminated", "truncated", "mask", "episode_starts"):
        assert getattr(pooled.steps, name).tobytes() == getattr(one_by_one.steps, name).tobytes(), name
    for name in ("observation",):
        assert pooled.steps.observations[name].tobytes() == one_by_one.steps.observations[name].tobytes()
        assert pooled.unroll.final_observations[name].tobytes() == one_by_one.unroll.final_observations[name].tobytes()
    assert pooled.episodes == one_by_one.episodes and len(pooled.episodes) >= 3


@pytest.mark.parametrize(
    ("env", "gymnasiums"), [("envpool:Pendulum-v1", "Pendulum-v1"), ("envpool:HalfCheetah-v5", "HalfCheetah-v5")]
)
def test_continuous_envs_agree_with_gymnasiums_by_statistics(env: str, gymnasiums: str) -> None:
    """Mean returns of 40 episodes of 100 steps of the same random actions. They differ by less than four standard
    errors; a scaled action or a shifted reward moves them by tens."""
    if "HalfCheetah" in env:
        require("mujoco")
    returns = {}
    for name in (env, gymnasiums):
        group = make_vector_env(EnvConfig(id=name, max_episode_steps=100), 40, seed=2)
        group.reset()
        actions = (
            np.random.default_rng(1).uniform(-1, 1, (100, 40, *(group.action_space.shape or ()))).astype(np.float32)
        )
        totals = np.zeros(40)
        for t in range(100):
            step = group.step(actions[t] * 2 if "Pendulum" in name else actions[t])
            totals += step.rewards
        assert step.truncated.all() and not step.terminated.any()
        returns[name] = totals
    one, other = returns[env], returns[gymnasiums]
    assert abs(one.mean() - other.mean()) < 4 * np.hypot(one.std(), other.std()) / np.sqrt(40)
    assert one.std() > 0


def restores_exactly(env: str, way: Any = "native", num_envs: int = 2) -> bool:
    """Episodes are so short that each env was reset twice before its state was taken: what draws random numbers in its
    steps as well cannot be replayed, and is found out."""
    config = EnvConfig(id=f"envpool:{env}", vectorization=way, max_episode_steps=20)
    return is_exact(lambda *, seed: make_vector_env(config, num_envs, seed=seed))


@pytest.mark.parametrize("family", REPLAYABLE)
def test_every_env_of_the_small_families_is_restored_exactly(family: str) -> None:
    specs = importlib.import_module("envpool.registration").registry.specs
    tasks = [task for task, (module, *_) in specs.items() if module == f"envpool.{family}" and "/" not in task]
    assert len(tasks) >= 6
    assert [task for task in tasks if not restores_exactly(task)] == []
    assert restores_exactly(tasks[0], "sync") and restores_exactly(tasks[0], num_envs=1)


@pytest.mark.parametrize("env", ["Breakout-v5", "FrozenLake-v1", "LunarLander-v3"])
def test_the_state_of_the_others_is_not_claimed_to_be_exact(env: str) -> None:
    assert not restores_exactly(env)


def test_games_are_bytes_of_four_frames_stacked_by_the_pool() -> None:
    observation, action = spaces_of(BREAKOUT)
    assert (observation.shape, observation.dtype, getattr(action, "n", None)) == ((4, 84, 84), np.uint8, 4)
    small = BREAKOUT.model_copy(update={"frame_stack": 2, "kwargs": {"img_height": 42, "img_width": 42}})
    assert spaces_of(small)[0].shape == (2, 42, 42)
    group = make_vector_env(small, 2)
    assert isinstance(group, VectorEnvGroup), "frames are stacked in C++, and not env by env"
    before = group.reset().observations["observation"]
    after = group.step(np.array([2, 3])).observations["observation"]
    assert after.dtype == np.uint8
    assert after[:, 0].tobytes() == before[:, 1].tobytes(), "the oldest frame comes first"
    stacked = make_vector_env(EnvConfig(id="envpool:CartPole-v1", frame_stack=3), 2)
    assert isinstance(stacked, LocalGroup), "what does not stack by itself is stacked here"
    assert stacked.reset().observations["observation"].shape == (2, 3, 4)


def test_a_lost_life_ends_an_episode_for_the_learner_and_not_the_game(numpy_policy: Any) -> None:
    whole = play(BREAKOUT, 2, 250, numpy_policy)
    lives = play(BREAKOUT.model_copy(update={"episodic_life": True}), 2, 250, numpy_policy)
    for name in ("actions", "rewards", "mask"):
        assert getattr(whole.steps, name).tobytes() == getattr(lives.steps, name).tobytes(), "the game is the same"
    assert whole.steps.observations["observation"].tobytes() == lives.steps.observations["observation"].tobytes()
    assert whole.episodes == lives.episodes, "and so is its score"
    games, ends = int(whole.steps.terminated.sum()), int(lives.steps.terminated.sum())
    assert games >= 2, "of five lives each"
    assert 5 * games <= ends <= 5 * games + 8
    assert lives.unroll.final_index.tolist() == np.argwhere(lives.steps.terminated).tolist()


def test_it_is_evaluated_and_shown_like_any_env(numpy_policy: Any) -> None:
    evaluator = Evaluator(CARTPOLE, EvalConfig(episodes=3, seed=1), lambda: numpy_policy(spaces_of(CARTPOLE)[1]))
    weights = pack_weights("policy", 1, 0, {"gain": np.array([3.0], np.float32)})
    first, again = (evaluator.evaluate(weights).returns for _ in range(2))
    assert first == again and len(set(first)) > 1
    env = make_env(CARTPOLE, render_mode="rgb_array")
    env.reset(seed=0)
    frame: Any = env.render()
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and frame.std() > 0


def test_what_cannot_be_is_refused_in_one_line() -> None:
    def refused(match: str, **settings: Any) -> None:
        with pytest.raises(BadInput, match=match) as caught:
            make_vector_env(EnvConfig(**settings), 2).reset()
        assert len(str(caught.value).splitlines()) == 1

    refused(r"'envpool:CartPol-v1' is not known to EnvPool: did you mean CartPole-v1\?", id="envpool:CartPol-v1")
    refused("kwargs.gravity: envpool:CartPole-v1 does not take it", id=CARTPOLE.id, kwargs={"gravity": 1})
    refused(r"does not take it; did you mean img_height\?", id=BREAKOUT.id, kwargs={"image_height": 1})
    refused("cannot be made|does not take these", id=BREAKOUT.id, kwargs={"img_height": "high"})
    for key, text in (("stack_num", "env.frame_stack"), ("reward_clip", "env.reward_clip"), ("seed", "seed")):
        refused(rf"env\.kwargs\.{key}: use {text}", id=BREAKOUT.id, kwargs={key: 1})
    refused("episodic_life=true: 'envpool:CartPole-v1' is no Atari game", id=CARTPOLE.id, episodic_life=True)
    refused("an env of EnvPool cannot go on after its end", id=CARTPOLE.id, fixed_episode_steps=5)
    refused("sync: lives are counted where", id=BREAKOUT.id, episodic_life=True, vectorization="sync")
