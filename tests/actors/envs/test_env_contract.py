"""What passes between envs and groups: nothing is shared, all of it is looked at, in one process or in many."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pytest
import torch

from rollcall.actors.control.unroll import begin_shard, unroll
from rollcall.actors.envs.contract import ContractError, as_flag, as_number
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import Vectorization, make_env, make_vector_env
from rollcall.actors.envs.vector import EnvGroup, Step
from rollcall.cluster.errors import BadInput, EnvFailure

# An env that shows, gives and returns whatever its arguments say; each test names only what is odd about it.
SAYS = """
import decimal

class Says(gym.Env):
    def __init__(self, space="spaces.Box(-10, 10, (3,), np.float32)", shows="np.zeros(3, np.float32)", pays="0.5",
                 ends="self.t >= 4", info="{}", acts="spaces.Discrete(4)"):
        self.observation_space, self.action_space = eval(space), eval(acts)
        self.shows, self.pays, self.ends, self.info = shows, pays, ends, info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.say(self.shows), self.say(self.info)

    def step(self, action):
        self.t += 1
        return self.say(self.shows), self.say(self.pays), self.say(self.ends), False, self.say(self.info)

    def say(self, what):
        return eval(what, globals(), {"self": self, "t": self.t})
"""


@pytest.fixture
def says(user_module: Callable[[str], str]) -> Callable[..., EnvConfig]:
    module = user_module(SAYS)

    def config(vectorization: Vectorization = "sync", **kwargs: str) -> EnvConfig:
        return EnvConfig(id=f"{module}:Says", vectorization=vectorization, kwargs=kwargs)

    return config


def steps(config: EnvConfig, num: int = 6, num_envs: int = 1) -> Step:
    """The last of some steps of a group whose every action is 2, or all zeros."""
    group = make_vector_env(config, num_envs, max_restarts=3)
    try:
        group.reset()
        action = np.zeros_like(group.action_space.sample())
        actions = np.stack([action + (2 if action.ndim == 0 else 0)] * num_envs)
        for _ in range(num):
            step = group.step(actions)
        return step
    finally:
        group.close()


def refused(config: EnvConfig, *words: str, num_envs: int = 1) -> None:
    """The run ends at once, in one line that names the env, the step and what is wrong."""
    with pytest.raises(EnvFailure) as caught:
        steps(config, num_envs=num_envs)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert "restart" not in text, "a new env would be no better"
    for word in (config.id, "env 0, step ", *words):
        assert word in text


# Nothing is shared.


REPAIRS = """
class Repairs(gym.Env):
    def __init__(self, kind="multi", kept=None):
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.MultiDiscrete([4, 4]) if kind == "multi" else spaces.Box(-9, 9, (2,), np.float32)
        if kept is not None:
            kept.append(1)  # what came from the config

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        action[:] = 0
        return np.zeros(1, np.float32), 1.0, False, False, {}


class Repaired(gym.vector.VectorEnv):
    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}

    def __init__(self, num_envs, kind="multi"):
        self.num_envs = num_envs
        one = Repairs(kind)
        self.single_observation_space, self.single_action_space = one.observation_space, one.action_space

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions):
        actions[:] = 0
        none = np.zeros(self.num_envs, bool)
        return np.zeros((self.num_envs, 1), np.float32), np.ones(self.num_envs), none, none.copy(), {}


def repairs(**kwargs):
    return Repairs(**kwargs)

repairs.vector_entry_point = Repaired
"""


class Fixed:
    """A policy's rollout whose actions are what it keeps, as the real one's are."""

    def __init__(self, actions: Any) -> None:
        self.actions = actions
        self.t = -1

    def act(self, observations: Any, *, episode_starts: Any, action_mask: Any = None) -> Any:
        self.t += 1
        return self.actions[self.t], self.actions[self.t]

    def behaviour_logprobs(self) -> Any:
        return np.zeros(self.actions.shape[:2], np.float32)

    def recurrent_state(self) -> None:
        return None


@pytest.mark.parametrize("kind", ["multi", "box"])
@pytest.mark.parametrize("vectorization", ["sync", "native", "async"])
def test_an_env_that_changes_its_action_in_place_changes_nobody_elses(
    user_module: Callable[[str], str], vectorization: Vectorization, kind: str
) -> None:
    module = user_module(REPAIRS)
    config = EnvConfig(id=f"{module}:repairs", vectorization=vectorization, kwargs={"kind": kind})
    group = make_vector_env(config, 2)
    actions = np.full((3, 2, 2), 3, np.int64 if kind == "multi" else np.float32)
    result = unroll(begin_shard(0, 0, group), Fixed(actions), num_steps=3, unit="fragment")
    group.close()
    assert (actions == 3).all(), "what the policy keeps"
    assert (result.steps.actions == 3).all(), "what is learnt from"


def test_an_env_that_changes_what_it_was_made_with_does_not_change_the_config(
    user_module: Callable[[str], str],
) -> None:
    config = EnvConfig(id=f"{user_module(REPAIRS)}:Repairs", kwargs={"kept": []})
    make_env(config)
    make_env(config)
    assert config.kwargs == {"kept": []}


# It shows the step's number, and episodes of three steps, in one array that it never gives up.
SAME_BUFFER = """
class Buffer(gym.Env):
    def __init__(self):
        self.observation_space = spaces.Box(-99, 99, (1,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.shown, self.mask = np.zeros(1, np.float32), np.zeros(3, np.int8)
        self.info = {"action_mask": self.mask}

    def show(self):
        self.shown[0] = self.t
        self.mask[:] = 0
        self.mask[self.t % 3] = 1
        return self.shown, self.info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.show()

    def step(self, action):
        self.t += 1
        observation, info = self.show()
        return observation, 1.0, False, self.t == 3, info
"""


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_env_that_shows_the_same_array_again_and_again_loses_neither_finals_nor_masks(
    user_module: Callable[[str], str], vectorization: Vectorization, autoreset: Literal["same_step", "next_step"]
) -> None:
    config = EnvConfig(id=f"{user_module(SAME_BUFFER)}:Buffer", vectorization=vectorization, autoreset=autoreset)
    group = make_vector_env(config, 2)
    result = unroll(begin_shard(0, 0, group), Fixed(np.zeros((8, 2), np.int64)), num_steps=8, unit="fragment")
    group.close()
    expected = [0, 1, 2, 0, 1, 2, 0, 1] if autoreset == "same_step" else [0, 1, 2, 3, 0, 1, 2, 3]
    assert result.steps.observations["observation"][:, 0, 0].tolist() == expected
    assert (result.unroll.final_observations["observation"] == 3).all()
    assert len(result.unroll.final_index) == 4
    assert result.steps.action_mask is not None
    for t in np.flatnonzero(result.steps.mask[:, 0]):
        assert np.flatnonzero(result.steps.action_mask[t, 0]).tolist() == [expected[t] % 3]


def test_a_stack_of_frames_keeps_copies_of_them(user_module: Callable[[str], str]) -> None:
    env = make_env(EnvConfig(id=f"{user_module(SAME_BUFFER)}:Buffer", frame_stack=3))
    env.reset()
    env.step(0)
    assert env.step(0)[0][:, 0].tolist() == [0, 1, 2]


# Observations are looked at.


@pytest.mark.parametrize(
    "shows", ["np.ones(1)", "7.0", "np.ones((1, 3))", "np.ones((3, 1))", "np.ones(4)", "[[1, 2, 3]]", "[1.0, 2.0]"]
)
def test_an_observation_of_another_shape_is_refused_and_never_broadcast(says: Any, shows: str) -> None:
    refused(says(shows=shows), "observation has shape", "observation_space says (3,)")


@pytest.mark.parametrize(
    "shows", ["None", "self.observation_space", "'abc'", "{'a': 1}", "[1j, 2, 3]", "[[1], [2, 3]]"]
)
def test_an_observation_that_is_no_array_of_numbers_is_refused_by_name(says: Any, shows: str) -> None:
    refused(says(shows=shows), "its observation")


@pytest.mark.parametrize(
    "shows", ["[1, 2, 3]", "(1.0, 2.0, 3.0)", "np.array([1, 2, 3])", "np.array([1.0, 2.0, 3.0], np.float16)"]
)
def test_numbers_of_another_kind_that_lose_nothing_are_taken(says: Any, shows: str) -> None:
    assert steps(says(shows=shows), 1).observations["observation"].tolist() == [[1, 2, 3]]


BYTES = "spaces.Box(0, 255, (2,), np.uint8)"


@pytest.mark.parametrize(
    ("space", "shows", "words"),
    [
        (BYTES, "np.full(2, 0.9, np.float32)", "0.9"),
        (BYTES, "np.array([0.0, 1.0])", "1.0 at [1]"),
        (BYTES, "np.full(2, 256)", "256 at [0]"),
        (BYTES, "[0, -1]", "-1 at [1]"),
        ("spaces.Box(0, 1, (2,), np.uint8)", "np.full(2, 2, np.uint8)", "from 0 to 1"),
        ("spaces.Box(-3, 3, (2,), np.int8)", "np.array([0, t], np.int8)", "4 at [1]"),
        ("spaces.MultiBinary(2)", "np.array([0, 2], np.int8)", "2 at [1]"),
        ("spaces.Discrete(4)", "t", "holds 4"),
        ("spaces.Discrete(4)", "np.int64(t - 1)", "holds -1"),
        ("spaces.Discrete(4)", "2.7", "2.7"),
        ("spaces.Discrete(4, start=2)", "0", "from 2 to 5"),
        ("spaces.MultiDiscrete([3, 4])", "np.array([t % 4, 0])", "3 at [0]"),
    ],
)
def test_whole_numbers_that_their_space_does_not_hold_are_refused(
    says: Any, space: str, shows: str, words: str
) -> None:
    refused(says(space=space, shows=shows), words)


@pytest.mark.parametrize(
    ("space", "shows", "shown"),
    [
        (BYTES, "np.array([0, 255])", [0, 255]),
        (BYTES, "np.array([0.0, 255.0])", [0, 255]),
        (BYTES, "np.zeros(2)", [0, 0]),
        ("spaces.MultiBinary(2)", "np.array([True, False])", [1, 0]),
        ("spaces.Box(0, 1, (2,), np.int8)", "np.array([0.0, 1.0])", [0, 1]),
        ("spaces.Discrete(4, start=-1)", "np.array([2])", 2),
        ("spaces.Discrete(4, start=-1)", "np.int8(-1)", -1),
    ],
)
def test_whole_numbers_are_taken_in_whatever_dtype_they_come(says: Any, space: str, shows: str, shown: Any) -> None:
    assert steps(says(space=space, shows=shows), 1).observations["observation"][0].tolist() == shown


def test_a_final_observation_is_looked_at_too(says: Any) -> None:
    refused(says(space="spaces.Box(0, 3, (1,), np.int64)", shows="np.array([t])"), "step 4", "4 at [0]")


def test_a_missing_part_of_a_dict_is_named(says: Any) -> None:
    space = "spaces.Dict({'a': spaces.Discrete(3), 'b': spaces.Discrete(3)})"
    refused(says(space=space, shows="{'a': 1}"), "'b'")
    refused(says(space=space, shows="{'a': 1, 'b': 3}"), "observation 'b' holds 3")


def test_async_envs_refuse_what_sync_ones_do_and_take_the_same(says: Any) -> None:
    refused(says("async", shows="np.ones((1, 3))"), "shape (1, 3)")
    refused(says("async", space=BYTES, shows="np.full(2, 256 if t > 1 else 0)"), "step 2", "256 at [0]")
    refused(says("async", info="{'action_mask': [2]}"), "action_mask is [2]")
    step = steps(says("async", pays="np.array([0.5])", info="{'x': lambda: 0, 'action_masks': [0, 0, 1, 0]}"), 2)
    assert step.rewards.tolist() == [0.5]
    assert step.action_mask is not None and step.action_mask.tolist() == [[False, False, True, False]]


def test_a_vector_env_is_held_against_its_space_once_for_all_its_envs(user_module: Callable[[str], str]) -> None:
    module = user_module(
        """
        class Two(gym.vector.VectorEnv):
            metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

            def __init__(self, num_envs, shows, pays="np.ones(2)", ends="np.zeros(2, bool)"):
                self.num_envs, self.shows, self.pays, self.ends = num_envs, shows, pays, ends
                self.single_observation_space = spaces.Box(0, 9, (3,), np.int64)
                self.single_action_space = spaces.Discrete(2)

            def reset(self, *, seed=None, options=None):
                return np.zeros((2, 3), np.int64), {}

            def step(self, actions):
                return eval(self.shows), eval(self.pays), eval(self.ends), np.zeros(2, bool), {}

        def two(**kwargs):
            raise NotImplementedError

        two.vector_entry_point = Two
        """
    )

    def group(**kwargs: str) -> EnvGroup:
        config = EnvConfig(id=f"{module}:two", vectorization="native", kwargs=kwargs)
        found = make_vector_env(config, 2, max_restarts=3)
        found.reset()
        return found

    good = group(shows="np.full((2, 3), 9)", pays="[1, 2]", ends="np.array([0, 1])").step(np.zeros(2, np.int64))
    assert good.rewards.tolist() == [1.0, 2.0] and good.terminated.tolist() == [False, True]
    for shows, words in [
        ("np.zeros((2, 1), np.int64)", "shape"),
        ("np.zeros((3, 2), np.int64)", "shape"),
        ("np.array([[0, 0, 0], [0, 10, 0]])", "env 1, step 1: its observation holds 10 at [1]"),
        ("np.full((2, 3), 0.5)", "0.5"),
    ]:
        with pytest.raises(EnvFailure) as caught:
            group(shows=shows).step(np.zeros(2, np.int64))
        assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1
    for odd in ({"pays": "np.ones((2, 1))"}, {"ends": "np.array([0, 2])"}, {"pays": "None"}):
        with pytest.raises(EnvFailure, match=r"its (rewards|terminated)"):
            group(shows="np.zeros((2, 3), np.int64)", **odd).step(np.zeros(2, np.int64))


# Masks.


@pytest.mark.parametrize(
    "mask",
    ["np.array([0, 0, 1, 0], np.int8)", "[False, False, True, False]", "np.array([0.0, 0, 1, 0])", "[[0, 0, 1, 0]]"],
)
@pytest.mark.parametrize("key", ["action_mask", "action_masks"])
def test_a_mask_is_found_in_the_info_under_either_name_as_bools_or_zeros_and_ones(
    says: Any, key: str, mask: str
) -> None:
    step = steps(says(info=f"{{{key!r}: {mask}}}"))
    assert step.action_mask is not None and step.action_mask.tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("name", ["action_mask", "action_masks"])
def test_a_mask_beside_the_observation_is_taken_out_under_either_name(says: Any, name: str) -> None:
    space = f"spaces.Dict({{'seen': spaces.Discrete(9), {name!r}: spaces.Box(0, 1, (4,), np.int8)}})"
    step = steps(says(space=space, shows=f"{{'seen': t, {name!r}: np.array([0, 0, 1, 0], np.int8)}}"))
    assert list(step.observations) == ["seen"]
    assert step.action_mask is not None and step.action_mask.tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_method_action_masks_is_asked_before_every_choice_through_wrappers_and_never_at_an_end(
    user_module: Callable[[str], str], vectorization: Vectorization
) -> None:
    module = user_module(
        """
        class Method(gym.Env):
            observation_space, action_space = spaces.Discrete(9), spaces.Discrete(3)

            def reset(self, *, seed=None, options=None):
                self.t = 0
                return 0, {}

            def step(self, action):
                assert action == self.t
                self.t += 1
                return self.t, 1.0, self.t == 3, False, {}

            def action_masks(self):
                assert self.t < 3, "there is no choice at an end"
                return np.arange(3) == self.t

        def wrapped():
            return gym.wrappers.TimeLimit(Method(), 100)
        """
    )
    group = make_vector_env(EnvConfig(id=f"{module}:wrapped", vectorization=vectorization), 2)
    shown: Any = group.reset()
    for _ in range(7):
        shown = group.step(shown.action_mask.argmax(axis=1))
    assert shown.observations["observation"].tolist() == [1, 1]
    group.close()


@pytest.mark.parametrize(
    "mask",
    [
        "np.array([1, 0, 0, 1, 1, 0])",
        "(np.array([1, 0]), np.array([0, 1, 1, 0]))",
        "[[True, False], [False, True, True, False]]",
        "np.array([[1, 0, 0, 0], [0, 1, 1, 0]])",
    ],
)
def test_masks_of_several_choices_come_side_by_side_or_one_by_one_or_as_padded_rows(says: Any, mask: str) -> None:
    step = steps(says(info=f"{{'action_mask': {mask}}}", acts="spaces.MultiDiscrete([2, 4])"))
    assert step.action_mask is not None
    assert step.action_mask[0].astype(int).tolist() == [1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    "mask",
    [
        *("[2]", "[2, 3]", "[0, 1, 2, 3]", "{2}", "[0, 0, 1]", "[[0, 0], [1, 0]]", "'0010'"),
        *("np.array([-np.inf, -np.inf, 0, -np.inf])", "np.array([-1e9, 0, 0, 0])", "[0.1, 0.2, 0.7, 0.0]"),
    ],
)
def test_indices_logits_and_all_else_that_may_mean_something_else_are_refused_as_masks(says: Any, mask: str) -> None:
    refused(says(info=f"{{'action_mask': {mask}}}"), "action_mask is ", "give 4 bools")


def test_a_mask_over_continuous_actions_is_refused(says: Any) -> None:
    refused(says(info="{'action_mask': [1, 1]}", acts="spaces.Box(-1, 1, (2,), np.float32)"), "continuous")


def test_what_looks_like_a_mask_under_another_name_is_said_to_be_unread(
    says: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="rollcall.actors"):
        step = steps(says(info="{'legal_actions': [2]}"))
    assert step.action_mask is None
    assert "'legal_actions' is not read as a mask: give an action_mask" in caplog.text


# Rewards and ends.


@pytest.mark.parametrize(
    ("given", "number"),
    [
        *((0.5, 0.5), (1, 1.0), (True, 1.0), (np.float32(0.5), 0.5), (np.int8(-1), -1.0), (Decimal("0.5"), 0.5)),
        *((np.array(0.5), 0.5), (np.array([0.5]), 0.5), (np.array([[2]]), 2.0)),
        *((torch.tensor(0.5), 0.5), (torch.tensor([0.5]), 0.5)),
    ],
)
def test_a_reward_is_whatever_is_one_number(given: Any, number: float) -> None:
    assert as_number("reward", given) == number


@pytest.mark.parametrize("given", [None, "0.5", [0.5], {"r": 0.5}, 0.5 + 0j, np.array([1.0, 2.0]), np.array([]), "nan"])
def test_a_reward_that_is_no_number_is_named(given: Any) -> None:
    with pytest.raises(ContractError, match=r"its reward is .* no number: return a float"):
        as_number("reward", given)


@pytest.mark.parametrize("given", [True, np.True_, 1, 1.0, np.int64(1), np.array([True]), torch.tensor([True])])
def test_an_end_is_true_or_one(given: Any) -> None:
    assert as_flag("terminated", given) is True


@pytest.mark.parametrize("given", [None, "", "False", "True", 2, 0.5, [True], np.array([True, False]), float("nan")])
def test_an_end_that_is_neither_true_nor_false_is_named(given: Any) -> None:
    with pytest.raises(ContractError, match=r"its terminated is .* neither True nor False"):
        as_flag("terminated", given)


def test_groups_ask_this_of_every_reward_and_end(says: Any) -> None:
    refused(says(pays="None"), "its reward is None")
    refused(says(ends="str(t >= 4)"), "its terminated is 'False'")
    assert steps(says(pays="np.array([2.5])", ends="int(t >= 4)"), 4).terminated.tolist() == [True]


# Envs that are written for another way of being called, and envs that fail.

OLD = """
class Old(gym.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)
    shown = np.zeros(2, np.float32)

    def reset(self, seed=None, options=None):
        return self.shown, {}

    def step(self, action):
        return self.shown, 1.0, False, False, {}

class FourValues(Old):
    def step(self, action):
        return self.shown, 1.0, False, {}

class Nothing(Old):
    def step(self, action):
        pass

class Bare(Old):
    def reset(self, seed=None, options=None):
        return self.shown

class NoSeed(Old):
    def reset(self):
        return self.shown, {}

class NoSpace(gym.Env):
    action_space = spaces.Discrete(2)

class Typo(Old):
    def step(self, action):
        return self.helper()

    def helper(self):
        return self.rewrad  # the line at fault

class NoOptions(Old):
    def reset(self, seed=None):
        return self.shown, {}
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FourValues", "step returned four values, as gym did before 0.26"),
        ("Nothing", "step did not return five values"),
        ("Bare", "reset returned ndarray float32[2], and not (observation, info)"),
        ("NoSeed", "reset takes no seed: write def reset(self, *, seed=None, options=None)"),
    ],
)
def test_each_way_of_the_old_gym_is_refused_in_its_own_words_and_not_tried_again(
    user_module: Callable[[str], str], name: str, words: str
) -> None:
    module = user_module(OLD)
    settings: list[dict[str, Any]] = [{}, {"max_episode_steps": 9}, {"frame_stack": 2}]
    for more in settings:
        refused(EnvConfig(id=f"{module}:{name}", **more), words)
    refused(EnvConfig(id=f"{module}:{name}", vectorization="async"), words)


def test_a_reset_without_options_is_enough(user_module: Callable[[str], str]) -> None:
    module = user_module(OLD)
    for vectorization in ("sync", "async"):
        assert steps(EnvConfig(id=f"{module}:NoOptions", vectorization=vectorization)).rewards.tolist() == [1.0]


def test_an_env_without_a_space_is_bad_input(user_module: Callable[[str], str]) -> None:
    with pytest.raises(BadInput, match=r"has no observation_space: set self.observation_space"):
        make_env(EnvConfig(id=f"{user_module(OLD)}:NoSpace"))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_first_line_of_a_failure_names_the_envs_own_line_and_the_traceback_follows_whole(
    user_module: Callable[[str], str], vectorization: Vectorization
) -> None:
    module = user_module(OLD)
    group = make_vector_env(EnvConfig(id=f"{module}:Typo", vectorization=vectorization), 1)
    group.reset()
    with pytest.raises(EnvFailure) as caught:
        group.step(np.zeros(1, np.int64))
    group.close()
    first, _, trace = str(caught.value).partition("\n")
    assert "env 0 raised AttributeError: 'Typo' object has no attribute 'rewrad'" in first
    assert f"{module}.py, line " in caught.value.headline.partition(", in helper: ")[0]
    assert trace.startswith("Traceback") and "# the line at fault" in trace
