"""A recipe and its overrides become one checked configuration, whose hash names what determines the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.kind_settings import json_schema
from rollcall.deploy.config.plugins import ALGORITHM, DIRECT_METHOD, TASK, shipped
from rollcall.deploy.config.recipe import run_config
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.config.settings import recipe_title, shipped_recipes
from tests.needs import require_for
from tests.runs import config_of

RECIPE = """\
# A small run
total_env_steps: 10_000
env: CartPole-v1
algorithm:
  name: ppo
  epochs: 3
actors:
  num_envs: 8
  num_shards: 2
  unroll_length: 32
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def refusal(recipe: Path, *overrides: str) -> str:
    """The one line with which a configuration is refused."""
    with pytest.raises(BadInput) as caught:
        config_of(recipe, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_sound_titled_and_short(name: str) -> None:
    require_for(name)
    path = shipped_recipes()[name]
    config = config_of(name)
    assert config.name == name
    assert recipe_title(path)
    assert "# Source" in path.read_text()
    written = [line for line in path.read_text().splitlines() if ":" in line and not line.startswith("#")]
    assert len(written) <= 36  # a user meets twenty settings or thirty, not a hundred


def test_overrides_win_and_the_last_one_most(recipe: Path) -> None:
    config: Any = config_of(recipe, ["actors.num=2", "learner.learning_rate=1e-2", "learner.learning_rate=1e-3"])
    assert config.actors.num == 2
    assert config.learner.learning_rate == 1e-3
    assert config.actors.num_envs == 8
    assert config.name == "small"


@pytest.mark.parametrize(
    ("cores", "settings", "expected"),
    [
        (1, ["actors.num_shards=4"], 1),
        (2, ["actors.num_shards=4"], 1),
        (4, ["actors.num_shards=4"], 3),
        (64, ["actors.num_shards=4"], 4),
        (64, ["actors.num_shards=1"], 1),
        (64, ["actors.num_shards=4", "actors.outside.num_shards=2"], 2),
        (64, ["actors.num_shards=4", "actors.outside.num_shards=4"], 0),
    ],
)
def test_actors_take_the_cores_beside_the_learners(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, cores: int, settings: list[str], expected: int
) -> None:
    monkeypatch.setattr("rollcall.actors.control.actors_config.usable_cores", lambda: cores)
    for more in ([], ["actors.num=auto"]):
        config: Any = config_of(recipe, [*settings, *more])
        assert config.actors.num == expected
    assert f"  num: {expected}\n" in config.to_yaml()  # a run's directory has the number


def test_what_follows_from_the_settings_is_derived(recipe: Path) -> None:
    config: Any = config_of(recipe)
    assert config.steps_per_batch == 8 * 32
    assert config.learner_steps == 40  # ceil(10000 / 256)
    assert config.tickets_per_step == 2
    assert config.envs_per_shard == 4
    assert config.minibatches_per_step == 3 * 4
    assert config.checkpoint_every_steps == 4
    assert config.derived()["learner steps"] == "40"


def test_a_run_of_whole_episodes_has_no_number_of_learner_steps_before_it_ran() -> None:
    config: Any = config_of("cartpole-reinforce")
    assert (config.steps_per_batch, config.learner_steps) == (None, None)
    assert config.total_env_steps == 500_000


def test_a_length_given_on_the_command_line_replaces_the_recipes(recipe: Path) -> None:
    config: Any = config_of(recipe, ["total_learner_steps=7"])
    assert (config.total_env_steps, config.total_learner_steps, config.learner_steps) == (None, 7, 7)


def test_lag_defaults_to_one_where_the_loss_corrects_it_and_to_none_elsewhere(recipe: Path) -> None:
    assert config_of(recipe).max_policy_lag == 1
    assert config_of(recipe, ["algorithm=impala"]).max_policy_lag == 1
    assert config_of(recipe, ["algorithm=a2c"]).max_policy_lag == 0
    assert config_of(recipe, ["algorithm=reinforce"]).max_policy_lag == 0


def test_another_algorithm_starts_from_its_own_defaults_and_another_env_keeps_the_wrappers(recipe: Path) -> None:
    config = config_of(recipe, ["algorithm=a2c"])
    assert config.algorithm_name == "a2c"
    recipe.write_text(RECIPE.replace("env: CartPole-v1", "env: {id: FrozenLake-v1, kwargs: {is_slippery: false}}"))
    slippery: Any = config_of(recipe)
    assert slippery.env.kwargs == {"is_slippery": False}
    other: Any = config_of(recipe, ["env=CartPole-v1", "env.max_episode_steps=50"])
    assert (other.env.id, other.env.kwargs, other.env.max_episode_steps) == ("CartPole-v1", {}, 50)


def test_the_saved_config_gives_the_same_run_again(recipe: Path, tmp_path: Path) -> None:
    config = config_of(recipe, ["policy.hidden_sizes=[32]", "seed=5"])
    saved = tmp_path / "config.yaml"
    saved.write_text(config.to_yaml())
    again = config_of(saved)
    assert again == config
    assert again.config_hash == config.config_hash


def test_the_hash_changes_with_the_result_and_not_with_who_watches(recipe: Path) -> None:
    base = config_of(recipe).config_hash
    for override in ("seed=1", "algorithm.epochs=4", "actors.num_shards=4", "env.max_episode_steps=9"):
        assert config_of(recipe, [override]).config_hash != base
    for override in ("name=other", "metrics.port=9999", "redis.reconnect_timeout_s=9", "supervision.max_restarts=3"):
        assert config_of(recipe, [override]).config_hash == base


def test_compilation_is_chosen_where_it_pays_and_the_choice_is_in_the_hash(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_config, "cpp_compiler", lambda: "/usr/bin/g++")
    short = config_of(recipe)
    assert short.learner.compile == "off"
    long_run = ["total_env_steps=600_000"]  # 2344 steps of 12 minibatches
    assert config_of(recipe, long_run).learner.compile == "on"
    assert config_of(recipe, [*long_run, "policy.recurrent=gru"]).learner.compile == "off"
    assert config_of(recipe, [*long_run, "learner.compile=off"]).learner.compile == "off"
    compiled = config_of(recipe, ["learner.compile=on"])
    assert compiled.config_hash != short.config_hash
    monkeypatch.setattr(run_config, "cpp_compiler", lambda: None)
    eager = config_of(recipe, long_run)
    assert eager.learner.compile == "off"
    assert eager.derived()["compiled update"] == "off (no C++ compiler found: updates run eagerly)"


@pytest.mark.parametrize(
    ("overrides", "chosen", "why"),
    [
        (["total_env_steps=20_000"], "serial", "over before Ray's processes would pay"),
        (["total_env_steps=25_000"], "serial", "over before Ray's processes would pay"),
        (["total_env_steps=26_000"], "ray", "26,000 env steps: acting and learning go on side by side"),
        (["total_learner_steps=9"], "serial", "over before Ray's processes would pay"),
        (["total_env_steps=20_000", "algorithm.epochs=20"], "ray", "6,320 minibatches"),
        (["total_env_steps=20_000", "actors.num=2"], "ray", "actors.num asks for processes"),
        (["total_env_steps=20_000", "algorithm=a3c"], "ray", "a3c asks for processes"),
        (["total_env_steps=20_000", "policy.recurrent=gru"], "ray", "a policy with gru: each step takes long"),
        (["total_env_steps=20_000", "algorithm=reinforce"], "serial", "over before Ray's processes would pay"),
        (["total_learner_steps=9", "algorithm=reinforce"], "ray", "nobody knows how long the run will be"),
    ],
)
def test_a_run_too_short_for_processes_is_one_process_and_says_why(
    recipe: Path, overrides: list[str], chosen: str, why: str
) -> None:
    config = config_of(recipe, [*overrides, "actors.num_shards=4"])
    assert config.runtime == chosen and f"runtime: {chosen}\n" in config.to_yaml()
    assert config.derived()["runtime"].startswith(f"{chosen} (") and why in config.derived()["runtime"]
    asked = config_of(recipe, [*overrides, "actors.num_shards=4", f"runtime={chosen}"])
    assert asked == config and asked.config_hash == config.config_hash
    other = "ray" if chosen == "serial" else "serial"
    assert config_of(recipe, [*overrides, "actors.num_shards=4", f"runtime={other}"]).derived()["runtime"] == other


def test_a_cluster_that_is_named_is_used_for_the_shortest_run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    config = config_of(recipe, ["total_env_steps=1000"])
    assert (config.runtime, config.derived()["runtime"]) == ("ray", "ray (RAY_ADDRESS is set)")
    monkeypatch.setenv("RAY_ADDRESS", "")  # which names none, for Ray's part, too
    assert config_of(recipe, ["total_env_steps=1000"]).runtime == "serial"
    assert config_of("arithmetic-grpo").runtime == "ray"


def test_a_password_is_not_saved_with_the_run(recipe: Path) -> None:
    config = config_of(recipe, ["redis.url=redis://:secret@localhost:6379"])
    assert "secret" not in config.to_yaml()
    assert "ROLLCALL_REDIS_URL" in config.to_yaml()
    plain = config_of(recipe, ["redis.url=redis://localhost:6379"])
    assert yaml.safe_load(plain.to_yaml())["redis"]["url"] == "redis://localhost:6379"


def test_the_schema_knows_every_setting_of_both_halves() -> None:
    schema = json_schema()
    json.dumps(schema)
    kinds = {kind["title"]: kind for kind in schema["anyOf"]}
    control, language, reward = kinds["RunConfig"], kinds["LanguageConfig"], kinds["RewardTrainConfig"]
    direct = kinds["DirectRunConfig"]
    named = {half["title"]: _variants(half, "algorithm") for half in (control, language)}
    assert {"PPOConfig", "TRPOConfig"} <= set(named[control["title"]])
    assert {"GRPOConfig", "LMPPOConfig"} <= set(named[language["title"]])
    assert sum(len(names) for names in named.values()) == len(shipped(ALGORITHM))
    with_returns = set(named[control["title"]]) - {"DAggerConfig"}  # which learns from labels, and not from rewards
    assert all("discount" in schema["$defs"][name]["properties"] for name in with_returns)
    assert all("token_budget" in schema["$defs"][name]["properties"] for name in named[language["title"]])
    assert len(_variants(language, "task")) == len(shipped(TASK)) == 5
    assert control["properties"]["seed"]["description"]
    assert len(_variants(direct, "algorithm")) == len(shipped(DIRECT_METHOD)) == 4
    assert "noise" in schema["$defs"]["BradleyTerryConfig"]["properties"] and "loss" in reward["properties"]


def _variants(half: dict[str, Any], section: str) -> list[str]:
    return [ref["$ref"].rpartition("/")[2] for ref in half["properties"][section]["anyOf"] if "$ref" in ref]


def test_an_algorithm_of_the_users_own_is_named_by_its_import_path(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_algorithm.py").write_text(
        "from pydantic import BaseModel, ConfigDict\n"
        "from rollcall.learners.algorithm import Needs\n"
        "from rollcall.learners.algorithms.control.ppo import PPO, PPOConfig\n"
        "class OwnConfig(BaseModel):\n"
        "    model_config = ConfigDict(extra='forbid', frozen=True)\n"
        "    name: str\n"
        "    strength: int = 3\n"
        "class Own(PPO):\n"
        "    Config = OwnConfig\n"
        "    needs = Needs(critic=True)\n"
        "    def __init__(self, config):\n"
        "        super().__init__(PPOConfig())\n"
        "        self.needs = Own.needs\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_of(recipe, ["algorithm=own_algorithm:Own", "algorithm.strength=4"])
    assert config.algorithm.model_dump() == {"name": "own_algorithm:Own", "strength": 4}
    assert config.max_policy_lag == 0
    again = tmp_path / "config.yaml"
    again.write_text(config.to_yaml())
    assert config_of(again) == config
    assert "unknown key" in refusal(recipe, "algorithm=own_algorithm:Own", "algorithm.weakness=4")


# Bad input: what, where it came from, what to do.


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["actors.nun=3"], "actors.nun = 3 (command line): unknown key; did you mean actors.num?"),
        (["clip_range=0.2"], "clip_range = 0.2 (command line): unknown key; did you mean algorithm.clip_range?"),
        (["algorithm.epoch=3"], "algorithm.epoch = 3 (command line): unknown key; did you mean algorithm.epochs?"),
        (["algorithm=pppo"], "algorithm.name = 'pppo' (command line): unknown algorithm; did you mean ppo?"),
        (["runtime=rey"], "runtime = 'rey' (command line): must be 'auto', 'ray' or 'serial'; did you mean ray?"),
        (["actors.num=two"], "actors.num = 'two' (command line): must be a whole number"),
        (["actors.num=true"], "actors.num = true (command line): must be a whole number"),
        (["actors.num=1.5"], "actors.num = 1.5 (command line): must be a whole number"),
        (["actors.num=-1"], "actors.num = -1 (command line): must be greater than or equal to 0"),
        (["seed=-1"], "seed = -1 (command line): must be greater than or equal to 0"),
        (["learner.learning_rate=fast"], "learner.learning_rate = 'fast' (command line): must be a number"),
        (["algorithm.discount=1.5"], "algorithm.discount = 1.5 (command line): must be less than or equal to 1"),
        (["policy.hidden_sizes=3"], "policy.hidden_sizes = 3 (command line): must be a list, such as [64, 64]"),
        (["actors=3"], "actors = 3 (command line): must be a section with settings inside"),
        (
            ["algorithm.kl_penalty.target=-1"],
            "algorithm.kl_penalty.target = -1 (command line): must be greater than 0",
        ),
        (
            ["algorithm.kl_penalty.traget=0.01"],
            "algorithm.kl_penalty.traget = 0.01 (command line): unknown key; did you mean algorithm.kl_penalty.target?",
        ),
        (
            ["policy.normalise_observations=1"],
            "policy.normalise_observations = 1 (command line): must be true or false",
        ),
    ],
)
def test_a_wrong_key_type_or_range_is_refused_with_its_path_value_and_remedy(
    recipe: Path, overrides: list[str], line: str
) -> None:
    assert refusal(recipe, *overrides) == line


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["env=CartPole-v7"], ["env.id = 'CartPole-v7' (command line)", "did you mean CartPole-v1?"]),
        (["env=CartPol-v1"], ["env.id = 'CartPol-v1' (command line)", "did you mean CartPole-v1?"]),
        (["env=no_such_module:make"], ["env.id", "there is no module 'no_such_module'"]),
        (["env.kwargs.speed=3"], ["env.id", "does not take these arguments", "env.kwargs"]),
        (["actors.num=3"], ["actors.num = 3 (command line)", "more actors than env shards (2)", "actors.num=2"]),
        (["actors.num_shards=3"], ["actors.num_envs = 8 (", "small.yaml:8)", "among 1, 2, 4, 8"]),
        (["algorithm=a2c", "max_policy_lag=2"], ["max_policy_lag = 2", "set max_policy_lag=0", "impala, ppo"]),
        (["algorithm.num_minibatches=512"], ["algorithm.num_minibatches = 512", "256 env steps", "256 at the most"]),
        (["algorithm.num_minibatches=9", "policy.recurrent=gru"], ["8 envs of a batch (a recurrent policy)"]),
        (["learner.num_processes=65"], ["learner.num_processes = 65", "64 env steps of a minibatch"]),
        (["env=FrozenLake-v1", "policy.normalise_observations=true"], ["policy.normalise_observations = true"]),
        (["policy.torso=cnn"], ["policy.torso = 'cnn'", "no observation is an image"]),
        (["learner.device=gpu"], ["learner.device = 'gpu'", "use auto, cpu, cuda or cuda:N"]),
        (["total_env_steps=null"], ["the run has no end", "total_learner_steps"]),
        (["total_env_steps=9", "total_learner_steps=9"], ["total_learner_steps = 9", "keep one of the two"]),
        (["algorithm=json:dumps"], ["algorithm.name = 'json:dumps'", "is no algorithm"]),
        (["algorithm=trpo", "policy.recurrent=gru"], ["policy.recurrent = 'gru'", "trpo fits the critic apart"]),
        (["algorithm=trpo", "policy.shared_torso=true"], ["policy.shared_torso = true", "set it to false"]),
        (["learner.compile=on", "policy.recurrent=gru"], ["learner.compile = 'on'", "a gru", "off or auto"]),
        (["learner.compile=on", "algorithm=reinforce"], ["learner.compile = 'on'", "whole episodes"]),
        (["name=../escape"], ["name = '../escape'", "letters, digits"]),
    ],
)
def test_settings_that_contradict_each_other_or_the_env_are_refused_in_one_line(
    recipe: Path, overrides: list[str], parts: list[str]
) -> None:
    line = refusal(recipe, *overrides)
    assert all(part in line for part in parts), line


def test_an_action_space_that_no_policy_can_deal_with_is_refused(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_env.py").write_text(
        "import gymnasium as gym\n"
        "class Odd(gym.Env):\n"
        "    observation_space = gym.spaces.Box(-1, 1, (2,))\n"
        "    action_space = gym.spaces.Text(5)\n"
        "def make():\n"
        "    return Odd()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    line = refusal(recipe, "env=odd_env:make")
    assert "env.id = 'odd_env:make'" in line
    assert "action space" in line
    assert "Discrete" in line


def test_several_mistakes_are_said_at_once_a_line_each(recipe: Path) -> None:
    with pytest.raises(BadInput) as caught:
        config_of(recipe, ["actors.num=-1", "learner.learning_rate=-1", "algorithm.epochs=0"])
    lines = str(caught.value).splitlines()
    assert sorted(line.partition(" ")[0] for line in lines) == [
        "actors.num",
        "algorithm.epochs",
        "learner.learning_rate",
    ]


def test_a_mistake_in_a_file_is_named_with_its_line(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("  epochs: 3", "  epochs: 3\n  clip_rnge: 0.1"))
    assert "small.yaml:7): unknown key; did you mean algorithm.clip_range?" in refusal(recipe)


def test_a_recipe_without_what_it_must_have_is_refused(recipe: Path) -> None:
    recipe.write_text("total_env_steps: 100\nenv: CartPole-v1\n")
    assert "small.yaml: algorithm is missing" in refusal(recipe)


def test_an_empty_recipe_says_what_is_missing(recipe: Path) -> None:
    recipe.write_text("")
    with pytest.raises(BadInput) as caught:
        config_of(recipe)
    assert [line.rpartition(": ")[2].partition(" is")[0] for line in str(caught.value).splitlines()] == [
        "algorithm",
        "env",
    ]


def test_python_gives_nested_values_and_is_told_where_a_wrong_one_came_from(recipe: Path) -> None:
    config = config_of(recipe, values={"seed": 2, "actors": {"num": 2}, "learner.threads": 2})
    assert (config.seed, config.actors.num, config.learner.threads) == (2, 2, 2)
    with pytest.raises(BadInput, match=r"actors\.num = 'x' \(train\(\.\.\.\)\): must be a whole number"):
        config_of(recipe, values={"actors": {"num": "x"}})


def test_a_config_made_in_python_is_the_same_as_one_that_was_read(recipe: Path) -> None:
    made = RunConfig.model_validate(
        {
            "name": "small",
            "total_env_steps": 10_000,
            "env": "CartPole-v1",
            "algorithm": {"name": "ppo", "epochs": 3},
            "actors": {"num_envs": 8, "num_shards": 2, "unroll_length": 32},
        }
    )
    assert made.resolved() == config_of(recipe)
    assert made.config_hash == config_of(recipe).config_hash
