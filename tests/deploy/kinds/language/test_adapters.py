"""Adapters and sharding in a recipe: what a run makes of the settings, and what it refuses."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config import language_checks
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.drive.lifecycle import prepare
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.learners.collective import Collective
from tests.needs import require
from tests.runs import config_of

require("peft")

RECIPE = """\
# One-digit addition for a moment
total_learner_steps: 2
task: {name: arithmetic, digits: 1, num_eval_rows: 20}
policy:
  model: tiny
  tiny: {hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}
algorithm: {name: grpo, kl_coef: 0.1}
actors: {samples_per_prompt: 4, prompts_per_batch: 4, sampling: {max_tokens: 4}, engine: {max_model_len: 16}}
"""
LORA = "policy.lora.rank=4"
WARM = "policy.warm_start={steps: 20, batch_size: 32, learning_rate: 1e-2}"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sums.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parts(work: Path, *overrides: str, run: str = "run") -> LanguageFactory:
    """A run's parts, its model made."""
    (work / run).mkdir(exist_ok=True)
    made = LanguageFactory(config_of("sums.yaml", overrides), work / run)
    assert isinstance(made, LanguageFactory)
    prepare(made)
    return made


def test_what_actors_get_at_first_does_not_tell_whether_there_are_adapters(work: Path) -> None:
    first, other = (
        parts(work, *overrides).learner(Collective()).weights(epoch=1, version=0) for overrides in ((), (LORA,))
    )
    assert first.index == other.index and first.checksum == other.checksum


def test_policy_and_critic_have_adapters_of_their_own_and_the_reference_no_parameters(work: Path) -> None:
    models = parts(work, LORA, "algorithm={name: lm_ppo, kl_coef: 0.1}").models()
    assert models.keys() == {"policy", "critic", "reference"}
    trained = {
        name: {key: value for key, value in model.named_parameters() if value.requires_grad}
        for name, model in models.items()
    }
    assert len(trained["policy"]) == 14 and len(trained["critic"]) == 14 + 2 and not trained["reference"]
    ends = "layers.0.mlp.up_proj.lora_A.default.weight"
    one, two = (next(v for k, v in trained[name].items() if k.endswith(ends)) for name in ("policy", "critic"))
    assert one.shape == (4, 32) and not torch.equal(one, two)


def test_a_warm_start_with_adapters_leaves_a_plain_model(work: Path) -> None:
    made = parts(work, WARM, "policy.warm_start.lora={}")
    given, warm = (load_file(path / "model.safetensors") for path in (made.given_model, made.model_directory))
    assert warm.keys() == given.keys()
    changed = {name for name, array in warm.items() if not np.array_equal(array, given[name])}
    assert changed == {name for name in given if name.endswith("_proj.weight")}
    # The run that follows begins with it, with adapters of its own or without.
    weights = parts(work, WARM, "policy.warm_start.lora={}", LORA).learner(Collective()).weights(epoch=1, version=0)
    assert all(np.array_equal(array, warm[name.removeprefix("policy.model.")]) for name, array in weights.tensors())


def test_a_target_that_the_model_does_not_have_is_refused_before_the_warm_start(work: Path) -> None:
    with pytest.raises(BadInput, match=r"lora\.targets: the model has no linear layer 'q_prj'.* but q_proj, k_proj"):
        parts(work, WARM, "policy.lora.targets=[q_prj]")
    assert not (work / "run" / "warm_start").exists() and not (work / "run" / "warm_start.jsonl").exists()


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("sums.yaml", ["policy.lora.rank=0"], "policy.lora.rank = 0 (command line): "),
        ("sums.yaml", ["policy.lora.dropout=0.1"], "policy.lora.dropout = 0.1 (command line): unknown key"),
        (
            "sums.yaml",
            ["learner.sharding=fsdp"],
            "learner.sharding = 'fsdp' (command line): there is one learner process, with nobody to share with",
        ),
        (
            "sums.yaml",
            ["learner.sharding=fsdp", "learner.num_processes=2", "runtime=serial"],
            "learner.sharding = 'fsdp' (command line): runtime=serial has one learner process",
        ),
        (
            "cartpole-ppo",
            ["learner.sharding=fsdp", "learner.num_processes=2"],
            "learner.sharding = 'fsdp' (command line): a control network is small: cutting it gains nothing; use auto",
        ),
        (
            "sums.yaml",
            ["actors.engine.weight_transfer=nccl", "runtime=serial"],
            "actors.engine.weight_transfer = 'nccl' (command line): runtime=serial has one process",
        ),
        (
            "sums.yaml",
            ["actors.engine.weight_transfer=nccl", "learner.device=cpu"],
            "actors.engine.weight_transfer = 'nccl' (command line): sends from GPU to GPU, and learner.device=cpu",
        ),
        (
            "sums.yaml",
            ["actors.engine.weight_transfer=ipc", "learner.num_processes=2"],
            "actors.engine.weight_transfer = 'ipc' (command line): is between two processes on one GPU: use nccl",
        ),
        ("cartpole-ppo", ["learner.sharding=ddp"], "learner.sharding = 'ddp' (command line): must be 'auto', 'none'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(
    work: Path, recipe: str, overrides: list[str], expected: str
) -> None:
    with pytest.raises(BadInput) as caught:
        config_of(recipe, overrides)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", [LORA, "policy.warm_start={lora: {}}"])
def test_adapters_without_peft_are_refused_when_the_recipe_is_read(
    work: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr(language_checks, "find_spec", lambda name: None if name == "peft" else find_spec(name))
    config_of("sums.yaml")
    with pytest.raises(BadInput, match=r"lora = .*: LoRA needs the package peft: pip install peft"):
        config_of("sums.yaml", [setting])


def test_a_resolved_recipe_gives_the_same_adapters_again(work: Path) -> None:
    config = config_of("sums.yaml", [LORA, "policy.lora.targets=[q_proj, v_proj]"])
    assert isinstance(config, LanguageConfig) and config.policy.lora is not None
    (work / "again.yaml").write_text(config.to_yaml())
    again = config_of("again.yaml")
    assert isinstance(again, LanguageConfig)
    assert again.policy.lora == config.policy.lora and again.config_hash == config.config_hash
