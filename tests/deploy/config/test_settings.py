"""A recipe's values keep where they were written, and mean what people mean by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.settings import flat_values, parse_override, parse_yaml, read_recipe


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("learner.compile=off", "off"),  # YAML 1.1 would say False
        ("learner.learning_rate=1e-3", 0.001),  # stock PyYAML would say the text '1e-3'
        ("total_env_steps=1e6", 1_000_000),
        ("total_env_steps=150_000", 150_000),
        ("env=my_module:make_env", "my_module:make_env"),
        ("policy.hidden_sizes=[64, 32]", [64, 32]),
        ("actors.on=true", True),
        ("eval.every_steps=null", None),
        ("name=1:30", "1:30"),  # YAML 1.1 would say 90
        ("x=.5", 0.5),
        ("x=-2", -2),
    ],
)
def test_an_override_means_what_it_looks_like(text: str, value: object) -> None:
    path, parsed = parse_override(text)
    assert path == tuple(text.partition("=")[0].split("."))
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["actors.num", "=4", "actors..num=4", "seed=", "policy.hidden_sizes=[64"])
def test_what_is_no_override_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_override(text)
    assert "command line" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_value_knows_its_line_and_an_override_its_own_origin() -> None:
    settings = parse_yaml("# a recipe\nseed: 1\nactors:\n  num: 2\n  num_envs: 16\n", "mine.yaml")
    assert settings.origin(("seed",)) == "mine.yaml:2"
    assert settings.origin(("actors", "num_envs")) == "mine.yaml:5"
    settings.set(("actors", "num"), 4, "command line")
    assert settings.origin(("actors", "num")) == "command line"
    assert settings.tree == {"seed": 1, "actors": {"num": 4, "num_envs": 16}}


def test_a_section_that_is_overridden_whole_forgets_the_lines_of_what_it_held() -> None:
    settings = parse_yaml("algorithm:\n  name: ppo\n  epochs: 4\n", "mine.yaml")
    settings.set(("algorithm",), {"name": "a2c"}, "command line")
    assert settings.origin(("algorithm", "epochs")) == "command line"


def test_a_key_written_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(BadInput, match=r"mine.yaml:4: actors.num is written twice \(first at mine.yaml:2\)"):
        parse_yaml("actors:\n  num: 2\n  num_envs: 4\n  num: 3\n", "mine.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "just words", "a: !!python/object:os.system x", "? [a]\n: 1"])
def test_yaml_that_is_no_recipe_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_yaml(text, "mine.yaml")
    assert str(caught.value).startswith("mine.yaml:")
    assert "\n" not in str(caught.value)


def test_a_setting_inside_a_plain_value_is_refused() -> None:
    settings = parse_yaml("seed: 1\n", "mine.yaml")
    with pytest.raises(BadInput, match="seed is 1, which has no settings inside"):
        settings.set(("seed", "value"), 2, "command line")


def test_python_values_may_be_nested_or_dotted() -> None:
    nested = flat_values({"seed": 1, "actors": {"num": 2}, "learner.threads": 1})
    assert nested == [(("seed",), 1), (("actors", "num"), 2), (("learner", "threads"), 1)]


def test_an_unknown_recipe_is_met_with_the_nearest_shipped_one() -> None:
    with pytest.raises(BadInput, match=r"unknown recipe 'cartpole-pp0' \(command line\); did you mean cartpole-ppo\?"):
        read_recipe("cartpole-pp0")


def test_a_recipe_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml: No such file or directory"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_a_recipe_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(BadInput, match="not a text file"):
        read_recipe(tmp_path / "binary.yaml")
