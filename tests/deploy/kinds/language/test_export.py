"""An exported policy: the checkpoint's weights, in a directory that transformers loads, and nobody's files lost."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from rollcall.cluster.checkpoint import CheckpointWriter, Manifest
from rollcall.cluster.errors import BadInput
from rollcall.deploy import export_policy, load_policy
from rollcall.deploy.cli import main
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.drive import lifecycle
from rollcall.deploy.drive.lifecycle import prepare
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.model_directory import save_policy
from rollcall.deploy.kinds.recipes import load_config, load_run
from rollcall.deploy.rundir.directories import claim_directory
from rollcall.deploy.rundir.files import MARKER, begin_run
from rollcall.learners.collective import Collective

RECIPE = """\
# One-digit addition for a moment
total_learner_steps: 2
runtime: serial
task: {name: arithmetic, digits: 1, num_eval_rows: 20}
policy:
  model: tiny
  tiny: {hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}
algorithm: grpo
actors:
  samples_per_prompt: 4
  prompts_per_batch: 4
  sampling: {max_tokens: 4}
  engine: {max_model_len: 16}
metrics: {enabled: false}
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sums.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(*overrides: str, steps: tuple[int, ...] = (2,)) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run directory as training leaves it, without the training: a real learner's checkpoints after each of `steps`,
    its parameters moved by hand. Returns the directory and the tensors of the last."""
    config = load_config("sums.yaml", overrides)
    assert isinstance(config, LanguageConfig)
    directory = claim_directory(config.name, explicit=True)
    begin_run(config, directory, recipe="sums")
    parts = LanguageFactory(config, directory)
    assert isinstance(parts, LanguageFactory)
    prepare(parts)
    learner = parts.learner(Collective())
    writer = CheckpointWriter(directory, keep=3)
    policy: Any = learner._models["policy"]
    generator = torch.Generator().manual_seed(0)
    for step in steps:
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        aside = writer.begin(step)
        learner.save(aside, learner.weights(epoch=1, version=step))
        manifest = Manifest(
            run_id="run",
            policy_id="policy",
            config_hash=config.config_hash,
            step=step,
            epoch=1,
            tier="exact",
            ledger={},
            driver={},
            files={},
        )
        writer.finish(aside, manifest)
    return directory, {name: tensor.detach().clone() for name, tensor in policy.model.named_parameters()}


def test_transformers_loads_an_export_to_the_checkpoints_bits(work: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory, expected = trained()
    assert export_policy(directory) == directory / "policy"
    model = AutoModelForCausalLM.from_pretrained(directory / "policy")
    loaded = dict(model.named_parameters())
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    given = load_file(directory / "model" / "model.safetensors")
    assert all(not np.array_equal(given[name], tensor) for name, tensor in expected.items())
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy")
    assert tokenizer.decode(tokenizer.encode("3+4=", add_special_tokens=False)) == "3+4="
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_written_once_and_one_of_its_own_beside_the_embedding(work: Path, tied: bool) -> None:
    directory, _ = trained(f"policy.tiny.tie_word_embeddings={tied}")
    names = set(load_file(export_policy(directory) / "model.safetensors"))
    assert "model.embed_tokens.weight" in names
    assert ("lm_head.weight" in names) is not tied


def test_an_export_can_be_read_by_whoever_can_read_the_run(work: Path) -> None:
    directory, _ = trained()
    ordinary = (directory / "config.yaml").stat().st_mode
    assert {path.stat().st_mode for path in export_policy(directory).iterdir()} == {ordinary}


def test_a_newer_export_replaces_an_older_one_and_a_named_checkpoint_is_taken(work: Path) -> None:
    directory, last = trained(steps=(1, 2))
    goal = work / "elsewhere" / "model"
    name = "model.norm.weight"
    assert main.main(["export", str(directory / "checkpoints" / "step-00000001"), str(goal)]) == 0
    assert json.loads((goal / MARKER).read_text())["policy_version"] == 1
    assert not np.array_equal(load_file(goal / "model.safetensors")[name], last[name])
    assert main.main(["export", str(directory), str(goal)]) == 0
    assert json.loads((goal / MARKER).read_text())["policy_version"] == 2
    assert np.array_equal(load_file(goal / "model.safetensors")[name], last[name])
    assert [path.name for path in goal.parent.iterdir()] == ["model"]


def test_an_empty_directory_is_exported_to_and_one_with_anything_else_is_not(work: Path) -> None:
    directory, _ = trained()
    (work / "empty").mkdir()
    assert (export_policy(directory, "empty") / "config.json").is_file()
    (work / "thesis").mkdir()
    (work / "thesis" / "chapter.txt").write_text("all I have")
    with pytest.raises(BadInput, match="thesis: a directory that is no export of Rollcall's"):
        export_policy(directory, "thesis")
    with pytest.raises(BadInput, match="a file"):
        export_policy(directory, work / "thesis" / "chapter.txt")
    assert [path.read_text() for path in (work / "thesis").iterdir()] == ["all I have"]


def test_the_model_that_a_run_begins_with_is_never_exported_over(work: Path) -> None:
    first, _ = trained("name=first")
    given = export_policy(first)
    before = (given / "model.safetensors").read_bytes()
    second, _ = trained("name=second", f"policy.model={given}")
    for goal in (given, first / "model"):
        with pytest.raises(BadInput, match=r"begins with again|no export of Rollcall's"):
            export_policy(second, goal)
    assert (given / "model.safetensors").read_bytes() == before


def test_an_export_that_fails_leaves_the_older_one_and_nothing_half_written(work: Path) -> None:
    from rollcall.cluster.checkpoint import load_weights

    directory, _ = trained()
    goal = export_policy(directory)
    before = {path.name: path.read_bytes() for path in goal.iterdir()}
    source = work / "no-config"
    shutil.copytree(directory / "model", source)
    (source / "config.json").unlink()
    with pytest.raises(BadInput, match="no causal language model can be loaded"):
        save_policy(load_weights(directory / "checkpoints" / "step-00000002"), source, goal)
    assert {path.name: path.read_bytes() for path in goal.iterdir()} == before
    assert not list(directory.glob(".policy*"))


def test_a_run_ends_as_it_did_when_its_policy_cannot_be_exported(work: Path) -> None:
    directory, _ = trained()
    (directory / "policy").write_text("in the way")
    assert lifecycle._export(load_run(directory)) is None
    log = (directory / "logs" / "driver.log").read_text()
    assert f"rollcall export {directory}" in log and "in the way" not in log
    assert not logging.getLogger("rollcall").handlers


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["eval", "sums", "--video", "film.gif"], ["--video = 'film.gif'", "nothing to film"]),
        (["export", "sms"], ["no run 'sms'", "did you mean sums?"]),
        (["export", "sums", "sums.yaml"], ["sums.yaml: a file"]),
        (["export", "sums", "runs/sums/model"], ["runs/sums/model: the model that the run began with"]),
        (["export", "poles", "goal"], ["runs/poles: no checkpoint"]),
        (["export", "sums", "--onnx", "sums.onnx"], ["runs/sums: a language run: --onnx is for control policies"]),
        (["export", "sums", "--adapters"], ["runs/sums: --adapters: the run has none (policy.lora)"]),
        (["export", "sums", "--push", "sums"], ["--push = 'sums'", "OWNER/NAME"]),
        (["export", "sums", "--public"], ["--public", "--push OWNER/NAME"]),
        (["export", "sums/checkpoints/step-00000009"], ["no checkpoint"]),
    ],
)
def test_what_cannot_be_evaluated_or_exported_gets_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    trained()
    control = load_config("cartpole-ppo", ["name=poles"])
    begin_run(control, claim_directory("poles", explicit=True), recipe="cartpole-ppo")
    before = sorted(work.rglob("*"))
    capsys.readouterr()
    assert main.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines
    assert sorted(work.rglob("*")) == before


def test_a_language_runs_policy_does_not_load_as_a_control_one_and_the_message_says_what_does(work: Path) -> None:
    directory, _ = trained()
    with pytest.raises(BadInput, match=r"transformers loads its policy from runs/sums/policy \(rollcall export"):
        load_policy(directory)


def test_a_model_that_is_gone_is_named(work: Path) -> None:
    directory, _ = trained()
    shutil.rmtree(directory / "model")
    with pytest.raises(BadInput, match="runs/sums/model: the model that the run began with is not there any more"):
        export_policy(directory)
