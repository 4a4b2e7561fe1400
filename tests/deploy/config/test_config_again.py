"""What a recipe gives, its config.yaml gives again, with the same hash: every shipped recipe, every scorer, text that
YAML could take for something else; from files, from the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.recipe.language_config import ActingConfig
from rollcall.deploy.config.recipe.reward_config import RewardConfig
from rollcall.deploy.config.settings import parse_override, parse_yaml, preference_recipes, shipped_recipes, to_yaml
from rollcall.reward_service.scorers.rules_config import Pattern, RegexConfig
from rollcall.reward_service.scorers.scorer_config import ScorerConfig
from tests.needs import require_for
from tests.runs import config_of

RECIPE = """\
total_learner_steps: 2
task: arithmetic
algorithm: grpo
"""
FORMAT = {"kind": "format", "sections": ["think", "answer"]}
REGEX = {
    "kind": "regex",
    "patterns": [{"name": "box", "pattern": r"\\boxed\{(\d+)\}: \#"}, {"name": "n", "pattern": "1e-3"}],
}
SCORERS: list[dict[str, Any]] = [
    {"kind": "exact_match", "answer_key": "off", "part": {"take": "after", "after": "####"}},
    {"kind": "number", "relative_tolerance": 1e-6},
    {"kind": "maths"},
    REGEX,
    FORMAT,
    {"kind": "length", "unit": "words", "at_least": 2, "at_most": 8},
    {"kind": "python_tests"},
    {
        "kind": "code_reward",
        "code": "def compute_reward(*_):  # 1e-3: off\n    return 1.0, {'one': 1.0}\n",
        "call_s": 1e-4,
    },
    {"kind": "reward_model", "path": "runs/model"},
    {"kind": "judge", "url": "http://localhost:8000/v1", "model": "m", "principles": ["be right: always", "~"]},
    {"kind": "function", "path": "my_module:score"},
    {"kind": "function", "path": "my_module:score", "takes": ["text"]},
    {
        "kind": "weighted_sum",
        "parts": {"form": {"scorer": FORMAT, "weight": 0.5}, "1e3": {"scorer": REGEX, "at_most": 1.0}},
    },
    {
        "kind": "ensemble",
        "members": {
            "sum": {"kind": "weighted_sum", "parts": {"form": {"scorer": FORMAT}}},
            "own": {"kind": "function", "path": "my_module:score", "takes": ["text"]},
        },
    },
]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def again(config: ActingConfig, tmp_path: Path) -> ActingConfig:
    saved = tmp_path / "config.yaml"
    saved.write_text(config.to_yaml())
    return config_of(saved)


def test_every_kind_of_scorer_is_among_the_examples_here() -> None:
    kinds = {member.model_fields["kind"].default for member in get_args(get_args(ScorerConfig)[0])}
    assert kinds == {scorer["kind"] for scorer in SCORERS}


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: str(scorer["kind"]))
def test_a_scorer_is_the_same_from_a_file_the_command_line_and_python_and_when_the_run_is_read_again(
    scorer: dict[str, Any], recipe: Path, tmp_path: Path
) -> None:
    typed = config_of(recipe, [f"reward.scorer={json.dumps(scorer)}"])
    given = config_of(recipe, values={"reward": {"scorer": scorer}})
    recipe.write_text(RECIPE + to_yaml({"reward": {"scorer": scorer}}))
    written = config_of(recipe)
    assert typed == given == written
    assert written.reward is not None and written.reward.scorer is not None
    found = written.reward.scorer.model_dump(mode="json")
    assert found["kind"] == scorer["kind"] and found.get("sections") == scorer.get("sections")
    assert again(written, tmp_path) == written
    assert again(written, tmp_path).config_hash == written.config_hash


def test_a_function_by_its_import_path_is_a_reward_wherever_it_is_written(recipe: Path, tmp_path: Path) -> None:
    typed = config_of(recipe, ["reward=my_module:score", "reward.patience_s=30"])
    assert typed == config_of(recipe, values={"reward": "my_module:score", "reward.patience_s": 30})
    recipe.write_text(RECIPE + "reward: my_module:score\n")
    assert typed == config_of(recipe, ["reward.patience_s=30"])
    assert again(typed, tmp_path) == typed


def test_a_scorer_of_another_kind_starts_from_its_own_defaults(recipe: Path) -> None:
    recipe.write_text(RECIPE + to_yaml({"reward": {"scorer": REGEX, "patience_s": 5.0}}))
    for config in (
        config_of(recipe, ["reward.scorer.kind=format", "reward.scorer.sections=[think, answer]"]),
        config_of(recipe, values={"reward": {"scorer": {"sections": ["think", "answer"], "kind": "format"}}}),
    ):
        assert config.reward is not None and config.reward.patience_s == 5.0
        assert config.reward.scorer is not None and config.reward.scorer.kind == "format"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "reward.scorer={kind: format, sections: [think, 3]}",
            "reward.scorer.sections.1 = 3 (command line): must be text",
        ),
        (
            "reward.scorer={kind: function, path: 'a:b', takes: text}",
            "reward.scorer.takes = 'text' (command line): must be a list, such as [64, 64]",
        ),
        ("reward.scorer={path: 'a:b'}", "its kind is missing"),
        ("reward=mathss", "did you mean maths?"),
        ("reward.scorer={kind: regex, patterns: [a: b: c]}", "not valid YAML"),
    ],
)
def test_what_is_wrong_in_a_scorer_is_said_by_the_path_that_the_user_wrote(
    recipe: Path, override: str, line: str
) -> None:
    with pytest.raises(BadInput) as caught:
        config_of(recipe, [override])
    assert line in str(caught.value).splitlines()[0]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_the_same_when_its_run_is_read_again(name: str, tmp_path: Path) -> None:
    require_for(name)
    config = config_of(name)
    assert again(config, tmp_path) == config
    assert again(config, tmp_path).config_hash == config.config_hash


@pytest.mark.parametrize("name", sorted(preference_recipes()))
def test_every_recipe_on_preferences_is_the_same_when_its_run_is_read_again(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    saved = tmp_path / "config.yaml"
    saved.write_text(config.to_yaml())
    assert config_of(saved) == config
    assert config_of(saved).config_hash == config.config_hash


def test_text_that_looks_like_a_number_or_a_truth_stays_text_in_the_saved_config() -> None:
    texts = ["1e-3", "1e3", ".5", "off", "true", "~", "", " led ", "1:30", "0x1f", "1_000", "=", "<<", "a: b", "# x"]
    texts += [
        "line\nbreak",
        "tab\t",
        "\u2028",
        "é",
        "- a",
        "[a",
        "{",
        "&a",
        "*a",
        "!t",
        "%",
        "@",
        "`",
        "'",
        '"',
        "2026-01-01",
    ]
    values = {"texts": texts, "keys": dict.fromkeys(texts, 1.0), "numbers": [1, 1.0, 1e-5, 1e16, float("inf"), 10**20]}
    assert parse_yaml(to_yaml(values), "config.yaml").tree == values


def test_an_override_of_several_lines_is_read_as_yaml_and_its_text_is_kept() -> None:
    assert parse_override("a.b={kind: regex,\n patterns: [x]}") == (("a", "b"), {"kind": "regex", "patterns": ["x"]})
    assert parse_override("a=kind: maths\ndigits: 3") == (("a",), {"kind": "maths", "digits": 3})
    assert parse_override("a=two\nlines") == (("a",), "two\nlines")


def test_python_may_give_numpy_numbers_tuples_paths_and_whole_sections(recipe: Path) -> None:
    section = RewardConfig(scorer=RegexConfig(patterns=(Pattern(name="n", pattern="1e-3"),)))
    values = {"seed": np.int64(3), "learner.learning_rate": np.float32(0.5), "reward": section}
    config = config_of(recipe, values=values)
    assert (config.seed, config.learner.learning_rate, config.reward) == (3, 0.5, section)
    given = config_of(recipe, values={"reward.scorer": {"kind": "format", "sections": ("think", "answer")}})
    assert given == config_of(recipe, ["reward.scorer={kind: format, sections: [think, answer]}"])


def test_a_function_itself_stands_for_its_name(recipe: Path) -> None:
    named = config_of(recipe, ["reward=json:loads"])
    assert config_of(recipe, values={"reward": json.loads}) == named
