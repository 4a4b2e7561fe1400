"""A policy as a directory in Hugging Face's format, which transformers and vLLM load: the model that the run began
with, and a checkpoint's weights in place of its own; or a tiny one, made for a task. Never computes with the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from rollcall.actors.engine.checkpoint_names import CheckpointNames
from rollcall.actors.engine.published_weights import published_model
from rollcall.actors.tasks.text_task import Task
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.rundir.files import MARKER
from rollcall.learners.models.byte_tokenizer import byte_tokenizer
from rollcall.learners.models.tiny_model import write_tiny_model

_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # config, generation config and tokenizer


def export_weights(weights: Weights, source: Path, goal: Path, *, taken: Collection[Path], config_hash: str) -> Path:
    """Writes a policy that was learnt to `goal`, with config and tokenizer of `source`. `taken`: models that the run
    begins with.

    Raises:
      BadInput: when `goal` is one of them, holds anything but an earlier export, or cannot be written.
    """
    if goal.resolve() in {path.resolve() for path in taken}:
        raise BadInput(f"{goal}: the model that the run began with, and begins with again: export to another directory")
    check_free(goal)
    origin = {"policy_id": weights.policy_id, "policy_version": weights.version, "weights": weights.checksum}
    try:
        save_policy(weights, source, goal, marker={"config_hash": config_hash, **origin})
    except OSError as error:
        raise BadInput(f"cannot write {goal}: {error.strerror or error}") from None
    return goal


def save_policy(weights: Weights, source: Path, directory: Path, *, marker: dict[str, object] | None = None) -> None:
    """The language model among the published `weights`, with config and tokenizer of `source`, at `directory` in one
    move: whoever looks sees all of it or nothing. Tied parameters are in the weights once, and are written once."""
    directory = directory.resolve()
    aside = directory.with_name(f".{directory.name}.making")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for path in sorted(_beside(source)):
            shutil.copyfile(path, aside / path.name)
        mode = (aside / "config.json").stat().st_mode
        tensors = CheckpointNames(aside).tensors(published_model(weights))
        model = aside / "model.safetensors"
        arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
        save_file(arrays, model, metadata={"format": "pt"})
        model.chmod(mode)  # save_file lets nobody else read, not even a server
        if marker is not None:
            (aside / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
        _swap_in(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def model_source(model: Path) -> Path:
    """The local directory with config and tokenizer of a model; of one known by its name on the Hugging Face hub, they
    are fetched, or found in the cache.

    Raises:
      BadInput: when there is no such model.
    """
    if model.is_dir():
        return model
    if model.is_absolute():
        raise BadInput(f"{model}: the model that the run began with is not there any more: put it back")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(model), allow_patterns=[f"*{suffix}" for suffix in _BESIDE]))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(
            f"policy.model = {str(model)!r}: neither a directory here nor a model to be had: {first}"
        ) from None


def _beside(source: Path) -> list[Path]:
    """What makes the weights a model again. Not the index of weights in many files: there is one file of them now."""
    return [
        path
        for path in source.iterdir()
        if path.suffix in _BESIDE and path.is_file() and path.name != MARKER and not path.name.endswith(".index.json")
    ]


def check_free(directory: Path) -> None:
    """Raises BadInput: for a directory that holds anything but an earlier export."""
    if not directory.exists() or (directory / MARKER).is_file():
        return
    if not directory.is_dir() or any(directory.iterdir()):
        what = "a directory that is no export of Rollcall's" if directory.is_dir() else "a file"
        raise BadInput(f"{directory}: {what}: nothing is written over it; name another directory")


def _swap_in(aside: Path, directory: Path) -> None:
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    aside.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def write_tiny(task: Task, settings: Mapping[str, Any], goal: Path, *, seed: int) -> None:
    """A model for a task, in one move. Its tokens are the task's characters, or with `vocab_size` pieces of the task's
    demonstrations."""
    aside = goal.with_name("model.new")
    shutil.rmtree(aside, ignore_errors=True)
    shape = {name: value for name, value in settings.items() if name != "vocab_size"}
    if "vocab_size" not in settings:
        write_tiny_model(aside, alphabet=task.alphabet(), seed=seed, **shape)  # type: ignore[attr-defined]
    else:
        texts = (segment.text for row in task.rows("train") for segment in task.demonstration(row))
        tokenizer = byte_tokenizer(texts, vocab_size=settings["vocab_size"])
        write_tiny_model(aside, tokenizer=tokenizer, seed=seed, **shape)
    aside.replace(goal)
