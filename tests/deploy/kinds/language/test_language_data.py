"""What a language run says of data and models that do not fit each other, before anything is begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rollcall.actors.language.text_codec import TextCodec
from rollcall.cluster.errors import BadInput
from rollcall.deploy.drive.lifecycle import prepare
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.warm_start import demonstrations_of
from rollcall.learners.data.demonstrations import Demonstration
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.learners.models.language.token_policy import model_length
from tests.needs import require
from tests.runs import config_of

require("transformers")

RECIPE = """\
total_learner_steps: 1
runtime: serial
task: {name: jsonl, path: rows.jsonl}
policy: {model: model}
algorithm: grpo
actors:
  samples_per_prompt: 4
  prompts_per_batch: 4
  sampling: {max_tokens: 8}
  engine: {max_model_len: 32}
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.yaml").write_text(RECIPE)
    write_rows("1+1=", "1+2=")
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "intermediate_size": 32,
    }
    write_tiny_model(Path("model"), alphabet="0123456789+=", max_position_embeddings=32, seed=0, **sizes)
    return tmp_path


def write_rows(*prompts: str) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": "2"}) + "\n" for p in prompts))


def parts(*overrides: str) -> LanguageFactory:
    made = LanguageFactory(config_of("sums.yaml", overrides), Path("run"))
    assert isinstance(made, LanguageFactory)
    return made


def test_a_task_without_held_out_rows_is_not_evaluated_and_that_is_said(
    work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = parts()
    made.check()
    assert made.eval_episodes == 0
    assert "no held-out rows, so nothing is evaluated: hold some out (task.num_eval_rows=100" in caplog.text
    assert parts("task.num_eval_rows=1").eval_episodes == 1
    caplog.clear()
    parts("eval.num_rows=0").check()
    assert not caplog.text


def test_a_context_longer_than_the_model_is_refused_before_the_engine_does(work: Path) -> None:
    with pytest.raises(BadInput, match=r"actors\.engine\.max_model_len = 33: .* takes at most 32 tokens"):
        parts("actors.engine.max_model_len=33").check()
    parts().check()


def test_a_tiny_models_own_length_counts_too(work: Path) -> None:
    (work / "tiny.yaml").write_text(
        RECIPE.replace("{name: jsonl, path: rows.jsonl}", "arithmetic").replace(": model}", ": tiny}")
    )
    made = LanguageFactory(config_of("tiny.yaml", ["actors.engine.max_model_len=1000"]), work / "run")
    (work / "run").mkdir()
    with pytest.raises(BadInput, match="takes at most 512 tokens"):
        prepare(made)


@pytest.mark.parametrize(
    ("written", "length"),
    [
        ({}, 32),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, None),
    ],
)
def test_a_models_length_is_its_configs_unless_that_is_stretched(
    work: Path, written: dict[str, Any], length: int | None
) -> None:
    path = Path("model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | written))
    assert model_length(Path("model")) == length


def test_a_config_that_its_class_refuses_is_one_line(work: Path) -> None:
    path = Path("model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": "many"}))
    with pytest.raises(BadInput, match=r"model: no .* from it: .*max_position_embeddings") as caught:
        parts().check()
    assert "\n" not in str(caught.value)


def test_demonstrations_longer_than_the_model_are_left_out_and_said(
    work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fitting() -> list[Demonstration]:
        return demonstrations_of(parts().task, TextCodec(Path("model")), Path("model"), num_rows=None, seed=0)

    write_rows("1+1=", "1" * 30, "1" * 31, "1" * 100)  # the answer and the end are two more tokens
    assert sorted(len(item.token_ids) for item in fitting()) == [6, 32]
    assert (
        "2 of 4 demonstrations are longer than the 32 tokens that the model takes (the longest has 102)" in caplog.text
    )
    write_rows("1" * 31)
    with pytest.raises(BadInput, match="all 1 demonstrations are longer"):
        fitting()
