"""Slips of the pen are answered, and settings explained, from a list of all settings that is generated: in the same
words as from the models, and before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.claims import CLAIMS
from rollcall.deploy.config.explaining import all_settings
from rollcall.deploy.config.known_settings import FILE, explained, refuse_unknown
from rollcall.deploy.config.settings import preference_recipes, read_recipe, shipped_recipes
from rollcall.deploy.config.validation import setting_fields
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.kinds.registry import KINDS
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
heavy = {"torch", "ray", "gymnasium", "numpy", "redis", "httpx"} & set(sys.modules)
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
        (["config", "--explain", "gamma"], 0, "algorithm.discount"),
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


def test_a_section_is_explained_by_what_is_in_it() -> None:
    assert {one.setting for one in explained("recorders.wandb")} >= {"recorders.wandb.project", "recorders.wandb.mode"}
    with pytest.raises(BadInput, match=r"did you mean actors\.num_envs\?"):
        explained("actors.nun_envs")
