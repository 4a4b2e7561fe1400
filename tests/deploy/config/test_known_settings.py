"""Slips of the pen are answered, and settings explained, from a list of all settings that is generated: in the same
words as from the models, and before torch is imported."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config import plugins
from rollcall.deploy.config.catalogue.explaining import all_settings
from rollcall.deploy.config.catalogue.known_settings import FILE, explained, refuse_unknown
from rollcall.deploy.config.claims import CLAIMS
from rollcall.deploy.config.kind_settings import checked_recipe
from rollcall.deploy.config.plugins import Plugin
from rollcall.deploy.config.settings import preference_recipes, read_recipe, shipped_recipes
from rollcall.deploy.config.validation import setting_fields
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.kinds.registry import KINDS
from rollcall.learners.declared import Declared
from rollcall.learners.loop.config import SHORT

RECIPES = sorted(shipped_recipes() | preference_recipes())


def test_the_list_is_what_the_models_say() -> None:
    assert FILE.read_text(encoding="utf-8") == all_settings(), "a setting changed: make generate"
    assert list(CLAIMS) == [kind.name for kind in KINDS]


def said(recipe: str, *overrides: str) -> str:
    try:
        refuse_unknown(recipe, overrides)
    except BadInput as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("recipe", "override"),
    [
        ("cartpole-ppo", "learner.lr=1"),
        ("cartpole-ppo", "lr=1"),
        ("cartpole-ppo", "actors.nun=3"),
        ("cartpole-ppo", "clip_range=0.2"),
        ("cartpole-ppo", "algorithm.epoch=3"),
        ("cartpole-ppo", "actor.num=2"),
        ("cartpole-ppo", "n_envs=8"),
        ("cartpole-ppo", "output_dir=x"),
        ("cartpole-ppo", "recorders.wandb.projct=x"),
        ("pendulum-sac", "algorithm.tau=0.1"),
        ("pendulum-sac", "replay.buffer=10"),
        ("synthetic-dpo", "algorithm.bta=0.1"),
        ("arithmetic-grpo", "policy.lora.rnk=3"),
        ("arithmetic-grpo", "task.digts=3"),
        ("arithmetic-grpo", "actors.sampling.max_token=3"),
        ("arithmetic-grpo", "group_size=3"),
    ],
)
def test_a_slip_is_answered_in_the_words_of_the_models(recipe: str, override: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_config(recipe, [override])
    assert said(recipe, override) == str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_is_refused_that_a_recipe_may_have(recipe: str) -> None:
    """Every setting of the kind's models, whatever value it has, is known; so is what the recipe says itself. (By what
    it names as its algorithm a recipe is of one kind or another.)"""
    assert said(recipe) == ""
    kind = next(kind for kind in KINDS if CLAIMS[kind.name](read_recipe(recipe).tree))
    for path in setting_fields(kind.config, {}):
        assert path == ("algorithm",) or said(recipe, f"{'.'.join(path)}=1") == ""


@pytest.mark.parametrize(
    "overrides",
    [
        ["learner.optimizer=sgd", "learner.optimizer.momentum=0.9"],
        ["learner.optimizer.momentum=0.9"],  # of another kind than the recipe's: the models say so
        ["algorithm=my_module:Mine", "algorithm.anything=1"],
        ["algorithm=a2c", "algorithm.n_step=3"],
        ["algorithm.name=a2c", "algorithm.n_step=3"],
        ["env.kwargs.length=3"],
        ["env=my_module:make", "env.kwargs={size: 8}"],
        ["reward=my_module:score", "reward.scorer.anything=1"],
        ["env=3"],
        *([f"learner.{short}=1"] for short in SHORT),
    ],
    ids=" ".join,
)
def test_what_only_the_models_can_tell_is_left_to_them(overrides: list[str]) -> None:
    assert said("cartpole-ppo", *overrides) == ""


def test_settings_with_an_older_name_are_known() -> None:
    assert said("arithmetic-grpo", "eval.episodes=3") == ""
    load_config("arithmetic-grpo", ["eval.episodes=3"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abc.=_ [1", min_size=1, max_size=12), max_size=3))
def test_whatever_is_typed_is_passed_on_or_refused_in_lines(overrides: list[str]) -> None:
    for line in said("cartpole-ppo", *overrides).splitlines():
        assert "(command line)" in line


LIGHT = """\
import sys
from rollcall.deploy.cli.main import main
code = main(sys.argv[1:])
heavy = {"torch", "ray", "gymnasium", "vllm", "transformers", "redis", "httpx", "prometheus_client"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["train", "cartpole-pp"], 2, "did you mean cartpole-ppo?"),
        (["train", "cartpole-ppo", "learner.lr=1"], 2, "Rollcall calls it learner.learning_rate"),
        (["config", "cartpole-ppo", "actors.nun=1"], 2, "did you mean actors.num?"),
        (["sft", "arithmetic-grpo", "task.digts=1"], 2, "did you mean task.digits?"),
        (["train", "cartpole-ppo", "algorithm=pppo"], 2, "did you mean ppo?"),
        (["train", "cartpole-ppo", "actors.num_envs=7"], 2, "do not divide"),
        (["train", "pendulum-sac", "policy.recurrent=gru"], 2, "draws single steps"),
        (["train", "arithmetic-grpo", "actors.sampling.max_tokens=100000"], 2, "no room for a prompt"),
        (["sft", "arithmetic-grpo", "policy.dtype=fp16"], 2, "must be 'float32' or 'bfloat16'"),
        (["plan", "cartpole-ppo", "learner.num_processes=0"], 2, "greater than or equal to 1"),
        (["config", "--explain", "gamma"], 0, "algorithm.discount"),
        (["config", "--explain", "gamma", "cartpole-ppo"], 0, "here: 0.98 (cartpole-ppo.yaml:"),
        (["config", "--schema"], 0, '"PPOConfig"'),
        (["config", "--explain", "learner.learning_rate", "--json"], 0, '"setting": "learner.learning_rate"'),
        (["config", "--explain", "lernrate"], 2, "there is no such setting"),
        (["--help"], 0, "usage: rollcall"),
        (["recipes"], 0, "cartpole-ppo"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_slips_and_explanations_import_nothing_heavy(
    arguments: list[str], code: int, text: str, tmp_path: Path
) -> None:
    done: Any = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == code and text in done.stdout + done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "cartpole-ppo", "env=CartPol-v1"], "did you mean CartPole-v1?"),
        (["train", "pong-ppo", "env.id=ALE/Pog-v5"], "did you mean ALE/Pong-v5?"),
        (["train", "cartpole-bc", "env=CartPole-v9"], "did you mean CartPole-v1?"),
        (["train", "cartpole-eureka", "env.id=xyzzy"], "give an id or module:function"),
        (["train", "frozenlake-q-learning", "env.id=FrozenLak-v1"], "did you mean FrozenLake-v1?"),
        (["train", "cartpole-ppo", "env=nowhere:make"], "there is no module 'nowhere'"),
        (["plan", "cartpole-ppo", "learner.device=gpu"], "use auto, cpu, cuda or cuda:N"),
        (
            ["train", "arithmetic-grpo", "policy.model=/no/model"],
            "policy.model = '/no/model' (command line): there is no",
        ),
        (["sft", "arithmetic-grpo", "policy.model=./model"], "there is no such directory"),
        (["plan", "arithmetic-expert-iteration", "policy.model=a/b/c"], "there is no such directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_env_or_a_model_that_is_not_there_is_told_before_torch_is_imported(
    arguments: list[str], text: str, tmp_path: Path
) -> None:
    light = LIGHT.replace('"gymnasium", ', "")
    done: Any = subprocess.run(
        [sys.executable, "-c", light, *arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 2 and text in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("recipe", ["cartpole-ppo", "pendulum-sac", "arithmetic-grpo", "synthetic-dpo", "cartpole-bc"])
def test_a_recipe_is_shown_at_once(recipe: str, tmp_path: Path) -> None:
    """By half a second of processor time on a machine of its own; here others work, too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", LIGHT, "config", recipe]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "# config hash" in done.stdout, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


@pytest.mark.parametrize(
    "recipe", ["cartpole-ppo", "pendulum-sac", "cartpole-eureka", "frozenlake-q-learning", "synthetic-dpo"]
)
def test_a_recipe_is_the_same_whoever_reads_it(recipe: str) -> None:
    """What `config` shows without torch is what `train` begins, to the hash."""
    assert checked_recipe(recipe).config_hash == load_config(recipe).config_hash


def test_all_that_is_wrong_is_told_in_one_try(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIGHT, "train", "cartpole-ppo", "misspelt=1", "algorithm.epochs=-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    first, second = done.stderr.splitlines()
    assert done.returncode == 2
    assert "algorithm.epochs = -1 (command line): must be greater than or equal to 1" in first
    assert "misspelt = 1 (command line): unknown key" in second


@pytest.mark.parametrize(
    "plugin", [plugins.ALGORITHM, plugins.DIRECT_METHOD, plugins.OFFLINE_METHOD, plugins.SUPERVISED_METHOD], ids=str
)
def test_what_is_declared_of_an_algorithm_is_what_it_is(plugin: Plugin) -> None:
    """Recipes are read by what stands beside an algorithm; it is run by what it says itself."""
    for name in plugins.shipped(plugin):
        found, declared = plugins.find(plugin, name), plugins.declared(plugin, name)
        assert isinstance(declared, Declared), f"{name}_config.py has no DECLARED: reading a recipe imports torch"
        assert (declared.Config, declared.needs) == (found.Config, found.needs)
        assert declared.unit == getattr(found, "unit", None)


def test_an_algorithm_of_a_users_own_says_itself_what_it_is() -> None:
    own = "rollcall.learners.algorithms.control.off_policy.dqn:DQN"
    assert plugins.declared(plugins.ALGORITHM, own) is plugins.find(plugins.ALGORITHM, "dqn")


def test_a_section_is_explained_by_what_is_in_it() -> None:
    assert {one.setting for one in explained("recorders.wandb")} >= {"recorders.wandb.project", "recorders.wandb.mode"}
    with pytest.raises(BadInput, match=r"did you mean actors\.num_envs\?"):
        explained("actors.nun_envs")
