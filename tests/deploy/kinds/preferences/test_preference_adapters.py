"""Adapters in runs on data: of reward models, direct methods and supervised runs. They alone are trained, and what a
run leaves is a plain model."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rollcall.cluster.checkpoint import list_checkpoints, load_weights
from rollcall.deploy.cli.main import main
from rollcall.deploy.config.recipe.preference_config import TextModelConfig
from rollcall.deploy.config.recipe.preference_settings import TextPreferencesConfig
from rollcall.deploy.drive.lifecycle import carry_out
from rollcall.deploy.kinds.beginning import new_run
from rollcall.deploy.kinds.kind import StoredRun
from rollcall.deploy.kinds.language.supervised import SupervisedRun
from rollcall.deploy.kinds.language.text_preferences import reward_training
from rollcall.deploy.kinds.recipes import load_recipe, load_supervised
from rollcall.deploy.preferences.data_config import PreferenceDataConfig
from rollcall.learners.models.language.lora_config import LoraConfig
from rollcall.reward_service.models.reward_model_files import load_reward_model
from tests.deploy.kinds.preferences.test_preference_runs import DIRECT, REWARD
from tests.needs import require, require_module

require_module("transformers")
require("peft")

LORA = "{rank: 4, alpha: 8}"
REWARD_LORA = (*REWARD, f"model.lora={LORA}", "learner.learning_rate=2e-2")
DIRECT_LORA = (*DIRECT, f"policy.lora={LORA}", "learner.learning_rate=2e-2")
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(recipe: str, name: str, *overrides: str) -> StoredRun:
    return new_run(load_recipe(recipe, [*overrides, f"name={name}"]), named=recipe, explicit=True)


def changed(one: Path, other: Path) -> set[str]:
    """Names of the tensors in which two models differ; all of one are there in the other."""
    before, after = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert before.keys() <= after.keys() | {"lm_head.weight"}
    return {name for name, array in after.items() if name not in before or not np.array_equal(array, before[name])}


def test_a_reward_model_with_adapters_is_a_plain_one_of_which_the_adapted_layers_and_the_head_have_learnt() -> None:
    run = begun("synthetic-reward", "r", *REWARD_LORA)
    summary = carry_out(run)
    assert summary["held_out"]["accuracy"] > 0.6  # chance is 0.5: 60 pairs
    found = changed(run.directory / "start", run.directory / "model")
    assert {name for name in found if not name.endswith("_proj.weight")} == {"score.weight"}
    assert sum(name.endswith("_proj.weight") for name in found) == 7
    served = load_reward_model(run.directory / "model")
    assert not any("lora" in name for name, _ in served.module.named_parameters())
    # What a checkpoint publishes of the last step is merged too, under the same names.
    names = {
        name.removeprefix("reward.model.") for name, _ in load_weights(list_checkpoints(run.directory)[-1]).tensors()
    }
    assert names == set(load_file(run.directory / "model" / WEIGHTS))


def test_what_the_service_scores_is_what_the_adapted_model_said_of_the_held_out_pairs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    carry_out(begun("synthetic-reward", "r", *REWARD_LORA, "total_learner_steps=6"))
    summary = json.loads(Path("runs/r/summary.json").read_text())
    assert main(["reward", "train", "synthetic-reward", *REWARD, f"model.start={Path('runs/r/model').resolve()}",
                 "learner.learning_rate=1e-12", "total_learner_steps=1", "name=again", "keep=last"]) == 0  # fmt: skip
    again = json.loads(Path("runs/again/summary.json").read_text())
    assert again["first_eval"]["eval_loss"] == pytest.approx(summary["held_out"]["loss"], abs=1e-5)


def test_a_direct_method_with_adapters_begins_as_its_reference_and_leaves_a_plain_model() -> None:
    run = begun("synthetic-dpo", "d", *DIRECT_LORA)
    summary = carry_out(run)
    assert summary["first_eval"]["mean"] == 0.5 and abs(summary["first_eval"]["kl_reference"]) < 1e-6
    assert summary["train"]["eval_loss"] < summary["first_eval"]["eval_loss"]
    found = changed(run.directory / "warm_start", run.directory / "policy")
    assert found and all(name.endswith("_proj.weight") for name in found)


class StopsAt:
    """A recorder that asks for the end after a step."""

    def __init__(self, step: int, stop: threading.Event) -> None:
        self._step, self._stop = step, stop

    def on_step(self, record: Any) -> None:
        if record["step"] == self._step:
            self._stop.set()

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.mark.long
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("synthetic-reward", (*REWARD_LORA, "total_learner_steps=6", "eval_every=2")),
        ("synthetic-dpo", (*DIRECT_LORA, "kl_prompts=0", "total_learner_steps=6")),
        ("synthetic-kto", (*DIRECT, "kl_prompts=0", "total_learner_steps=6")),
    ],
    ids=["reward-lora", "dpo-lora", "kto"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(recipe: str, overrides: tuple[str, ...], step: int) -> None:
    whole, parted = begun(recipe, "whole", *overrides), begun(recipe, "parted", *overrides)
    carry_out(whole)
    stop = threading.Event()
    stopped = carry_out(parted, stop_requested=stop.is_set, console=[StopsAt(step, stop)])  # type: ignore[list-item]
    assert (stopped["status"], stopped["learner_steps"]) == ("stopped", step + 1)
    assert carry_out(parted, resume=True)["status"] == "completed"
    one, other = (load_weights(list_checkpoints(run.directory)[-1]) for run in (whole, parted))
    assert one.checksum == other.checksum
    kept = [next(run.directory / name / WEIGHTS for name in ("model", "policy") if (run.directory / name).is_dir())
            for run in (whole, parted)]  # fmt: skip
    assert kept[0].read_bytes() == kept[1].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["model.start=words", "model.lora={}"], "a model of words has no layers for adapters"),
        (["model.lora.rank=0"], "model.lora.rank = 0 (command line): "),
        (["model.lora.targets=[q_prj]"], "the model has no linear layer 'q_prj' for an adapter, but q_proj"),
        (["model={kind: segment, lora: {}}"], "model.lora"),
    ],
)
def test_adapters_that_cannot_be_are_refused_in_a_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reward", "train", "synthetic-reward", *REWARD, *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_the_reward_models_of_a_run_with_raters_have_the_adapters_that_it_asks_for(tmp_path: Path) -> None:
    asked = TextPreferencesConfig.model_validate({"true_reward": "m:f", "lora": {"rank": 4}, "members": 3})
    made = reward_training(asked, "labels-1", PreferenceDataConfig(train="f.jsonl"), start=tmp_path, seed=1)
    assert isinstance(made.model, TextModelConfig) and made.model.lora == LoraConfig(rank=4) and made.model.members == 3


@pytest.mark.parametrize(
    ("settings", "warns"), [((), False), (("policy.lora.rank=2",), True), (("policy.warm_start.lora.rank=2",), False)]
)
def test_adapters_of_the_run_that_follows_are_not_taken_for_those_of_supervised_fine_tuning(
    settings: tuple[str, ...], warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("sums.yaml").write_text(
        "task: arithmetic\npolicy: {model: tiny, warm_start: {steps: 1}}\nalgorithm: grpo\ntotal_learner_steps: 1\n"
    )
    config = load_supervised("sums.yaml", settings).config
    for _ in SupervisedRun(config, tmp_path).preparations():  # type: ignore[arg-type]
        raise AssertionError("nothing is to be made but the tiny model")
    assert ("policy.warm_start.lora.rank=2" in caplog.text) == warns
