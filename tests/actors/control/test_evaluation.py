"""An evaluation is a function of weights and seed alone; a video is one of its episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.evaluation_config import EvalConfig
from rollcall.actors.control.video import record_video
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env
from rollcall.cluster.errors import BadInput, EnvFailure
from rollcall.cluster.messages.reports import EvalReport
from rollcall.cluster.messages.weights import Weights, pack_weights
from rollcall.cluster.seeds import derive_seed
from rollcall.learners.models.flat import module_weights
from rollcall.learners.models.networks import build_actor_critic
from rollcall.learners.models.policy import TorchPolicy
from rollcall.learners.models.policy_config import PolicyConfig

CARTPOLE = EnvConfig(id="CartPole-v1")


def weights(gain: float = 50.0, version: int = 3) -> Weights:
    return pack_weights("policy", 1, version, {"gain": np.array([gain], np.float32)})


def evaluate(
    numpy_policy: Any, env: EnvConfig = CARTPOLE, *, recurrent: bool = False, seed: int = 5, **settings: Any
) -> EvalReport:
    space = make_env(env).action_space
    evaluator = Evaluator(env, EvalConfig(**{"episodes": 7} | settings), lambda: numpy_policy(space, recurrent))
    return evaluator.evaluate(weights(), seed=seed)


def test_each_episode_is_that_of_a_single_env_from_its_own_seed(numpy_policy: Any) -> None:
    result = evaluate(numpy_policy)
    for i in range(7):
        env = make_env(CARTPOLE)
        observation, _ = env.reset(seed=derive_seed(5, "eval", i) >> 32)
        policy = numpy_policy(env.action_space, gain=50.0)
        rollout = policy.rollout(num_steps=500, num_envs=1, seed=0, recurrent_state=None, greedy=True)
        total, length, over = 0.0, 0, False
        while not over:
            _, actions = rollout.act({"observation": observation[None]}, episode_starts=np.zeros(1, bool))
            observation, reward, terminated, truncated, _ = env.step(actions[0])
            total, length, over = total + float(reward), length + 1, terminated or truncated
        assert (result.returns[i], result.lengths[i]) == (total, length)
    assert len(set(result.lengths)) > 3


@pytest.mark.parametrize(
    "settings", [{"greedy": True}, {"greedy": True, "recurrent": True}, {"greedy": False}], ids=str
)
def test_the_result_does_not_depend_on_how_many_envs_are_stepped_at_once(
    numpy_policy: Any, settings: dict[str, Any]
) -> None:
    results = [evaluate(numpy_policy, num_envs=num_envs, **settings) for num_envs in (1, 3, 20)]
    assert results[0] == results[1] == results[2]
    assert results[0] != evaluate(numpy_policy, num_envs=3, **{**settings, "seed": 6})


def test_the_same_weights_and_seed_give_the_same_result_again(numpy_policy: Any) -> None:
    evaluator = Evaluator(CARTPOLE, EvalConfig(), lambda: numpy_policy(gym.spaces.Discrete(2)))
    first = evaluator.evaluate(weights(), 4)
    evaluator.evaluate(weights(gain=20.0), 4)
    assert evaluator.evaluate(weights(), 4) == first
    assert (first.n, first.policy_version, len(first.returns)) == (4, 3, 4)
    assert first.mean == pytest.approx(np.mean(first.returns))
    assert first.std == pytest.approx(np.std(first.returns))
    assert evaluator.evaluate(weights(), 3).returns == first.returns[:3]
    evaluator.close()
    with pytest.raises(ValueError, match="episodes=0"):
        evaluator.evaluate(weights(), 0)


def test_an_episode_longer_than_a_rollout_remembers_across_the_border(
    numpy_policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pendulum = EnvConfig(id="Pendulum-v1")
    whole = evaluate(numpy_policy, pendulum, recurrent=True)
    monkeypatch.setattr("rollcall.actors.control.evaluation._CHUNK_STEPS", 7)
    assert evaluate(numpy_policy, pendulum, recurrent=True) == whole
    assert set(whole.lengths) == {200}


def test_an_episode_without_an_end_is_left_and_counted_as_unfinished(numpy_policy: Any, counter_module: str) -> None:
    result = evaluate(
        numpy_policy,
        EnvConfig(id=f"{counter_module}:Counter", kwargs={"length": 10**9}),
        episodes=2,
        max_steps_per_episode=30,
    )
    assert result.lengths == (30, 30)
    assert result.returns == (465.0, 465.0)
    assert result.unfinished == 2
    assert evaluate(numpy_policy, EnvConfig(id=f"{counter_module}:Counter"), episodes=3).unfinished == 0


def test_returns_are_the_envs_own(numpy_policy: Any, counter_module: str) -> None:
    result = evaluate(numpy_policy, EnvConfig(id=f"{counter_module}:Counter", reward_clip=1.0), episodes=3)
    assert result.returns == (15.0, 15.0, 15.0)


def test_an_env_that_raises_gives_no_result_with_holes(numpy_policy: Any, counter_module: str) -> None:
    env = EnvConfig(id=f"{counter_module}:Counter", kwargs={"raise_at": 3, "only_some": False})
    with pytest.raises(EnvFailure, match=r"(?s)env 0 raised RuntimeError: the arm fell off.*Traceback"):
        evaluate(numpy_policy, env)


def test_a_video_shows_one_episode(numpy_policy: Any, tmp_path: Path) -> None:
    policy = numpy_policy(gym.spaces.Discrete(2))
    policy.load(weights())
    path = tmp_path / "videos" / "cartpole.gif"
    total = record_video(CARTPOLE, policy, path, seed=5)
    assert total == evaluate(numpy_policy).returns[0], "the evaluation's first episode"
    with Image.open(path) as video:
        shown_ms = 0  # frames that look the same are one that is shown longer
        for i in range(getattr(video, "n_frames", 1)):
            video.seek(i)
            shown_ms += video.info["duration"]
        assert shown_ms == 20 * (total + 1)
        assert video.size[0] == 480


@pytest.mark.parametrize(
    ("frame", "shown"),
    [
        ("np.full((4, 6, 3), 128, np.uint8)", 128),
        ("np.full((4, 6, 3), 0.5, np.float32)", 128),
        ("np.full((4, 6, 3), 128.0)", 128),
        ("np.full((4, 6, 3), 128)", 128),
        ("np.full((4, 6), 128, np.uint8)", 128),
        ("np.full((4, 6, 1), 0.5)", 128),
        ("np.ones((4, 6, 3), bool)", 255),
        ("self.buffer", 128),
    ],
)
def test_a_video_shows_what_is_rendered_in_bytes_or_in_floats(
    numpy_policy: Any, user_module: Any, tmp_path: Path, frame: str, shown: int
) -> None:
    policy = numpy_policy(gym.spaces.Discrete(2))
    policy.load(weights())
    env = EnvConfig(id=f"{user_module(RENDERS)}:Renders", kwargs={"frame": frame})
    record_video(env, policy, tmp_path / "run.gif", max_steps=2)
    with Image.open(tmp_path / "run.gif") as video:
        assert video.convert("RGB").getpixel((2, 2)) == (shown, shown, shown)


RENDERS = """
class Renders(gym.Env):
    metadata = {"render_modes": ["rgb_array"]}
    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, frame, render_mode=None):
        self.frame, self.render_mode = frame, render_mode
        self.buffer = np.full((4, 6, 3), 128, np.uint8)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.buffer[:] = 0
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        return eval(self.frame)
"""


@pytest.mark.parametrize(
    "frame", ["np.full((4, 6, 3), -1)", "np.full((4, 6, 3), 300.0)", "[None]", "np.zeros((3, 4, 6))"]
)
def test_what_is_rendered_and_is_no_frame_is_refused(
    numpy_policy: Any, user_module: Any, tmp_path: Path, frame: str
) -> None:
    policy = numpy_policy(gym.spaces.Discrete(2))
    policy.load(weights())
    env = EnvConfig(id=f"{user_module(RENDERS)}:Renders", kwargs={"frame": frame})
    with pytest.raises(BadInput, match="Renders' renders"):
        record_video(env, policy, tmp_path / "run.gif", max_steps=2)


def test_what_cannot_be_filmed_is_refused(numpy_policy: Any, counter_module: str, tmp_path: Path) -> None:
    policy = numpy_policy(gym.spaces.Discrete(2))
    with pytest.raises(BadInput, match=r"only GIF can be written: name it run\.gif"):
        record_video(CARTPOLE, policy, tmp_path / "run.mp4")
    with pytest.raises(BadInput, match="Counter' does not render"):
        record_video(EnvConfig(id=f"{counter_module}:Counter"), policy, tmp_path / "run.gif")
    assert not list(tmp_path.glob("*.gif"))


def test_rendering_that_fails_is_refused(numpy_policy: Any, user_module: Callable[[str], str], tmp_path: Path) -> None:
    module = user_module(
        """
        class Blind(gym.Env):
            metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
            observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

            def __init__(self, render_mode=None):
                self.render_mode = render_mode

            def reset(self, *, seed=None, options=None):
                return 0, {}

            def render(self):
                raise RuntimeError("no display")
        """
    )
    with pytest.raises(BadInput, match=r"Blind' cannot render here \(RuntimeError: no display\)"):
        record_video(EnvConfig(id=f"{module}:Blind"), numpy_policy(gym.spaces.Discrete(2)), tmp_path / "run.gif")


_CHAOS = """
class Chaos(gym.Env):
    observation_space = spaces.Box(-1, 1, (17,), np.float64)
    action_space = spaces.Box(-1, 1, (6,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.state = 0, self.np_random.uniform(-1, 1, 17)
        return self.state, {}

    def step(self, action):
        self.t += 1
        self.state = np.sin(40 * self.state + 40 * action.sum(dtype=np.float64))
        return self.state, self.state[0], False, self.t >= 30, {}
"""


def test_an_episodes_return_depends_on_neither_the_number_of_episodes_nor_on_what_runs_beside_it(
    user_module: Callable[[str], str],
) -> None:
    """An env that makes another return of another last bit, under a network whose matrix products have such bits."""
    env = EnvConfig(id=f"{user_module(_CHAOS)}:Chaos")
    spaces = make_env(env).observation_space, make_env(env).action_space
    network = build_actor_critic(*spaces, PolicyConfig(), with_critic=False, seed=3)
    with torch.no_grad():
        network.policy_head.weight.mul_(50.0)
    saved = module_weights({"actor_critic": network}, "policy", epoch=1, version=0)

    def returns(episodes: int, num_envs: int) -> tuple[float, ...]:
        evaluator = Evaluator(env, EvalConfig(num_envs=num_envs), lambda: TorchPolicy(*spaces, PolicyConfig()))
        return evaluator.evaluate(saved, episodes).returns

    whole = returns(45, 20)
    assert len(set(whole)) == 45
    for episodes, num_envs in ((1, 20), (2, 20), (7, 1), (23, 3), (45, 64)):
        assert returns(episodes, num_envs) == whole[:episodes], (episodes, num_envs)
