"""A policy as a directory in Hugging Face's format, which transformers and vLLM load: the model that the run began
with, and a checkpoint's weights in place of its own; or a tiny one, made for a task. Never computes with the model."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from rollcall.actors.engine.checkpoint_names import CheckpointNames
from rollcall.actors.engine.published_weights import published_model
from rollcall.actors.tasks.text_task import Task
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.rundir.files import MARKER
from rollcall.learners.models.language.byte_tokenizer import byte_tokenizer
from rollcall.learners.models.language.tiny_model import write_tiny_model

_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # config, generation config and tokenizer


def check_goal(goal: Path, taken: Collection[Path]) -> None:
    """Of an export. `taken`: models that the run begins with.

    Raises:
      BadInput: when `goal` is one of them, or holds anything but an earlier export.
    """
    if goal.resolve() in {path.resolve() for path in taken}:
        raise BadInput(f"{goal}: the model that the run began with, and begins with again: export to another directory")
    check_free(goal)


def save_policy(
    weights: Weights,
    source: Path,
    directory: Path,
    *,
    marker: Mapping[str, object] | None = None,
    dtype: str | None = None,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """The language model among the published `weights`, with config and tokenizer of `source`, at `directory` in one
    move: whoever looks sees all of it or nothing. Tied parameters are in the weights once, and are written once.
    `dtype`: of what is written; None: as they come. `texts`: files beside it."""
    with write_directory(directory, marker=marker, texts=texts) as aside:
        for path in sorted(_beside(source)):
            shutil.copyfile(path, aside / path.name)
        if dtype is not None:
            _say_dtype(aside / "config.json", dtype)
        tensors = CheckpointNames(aside).tensors(published_model(weights))
        write_tensors(tensors, aside / "model.safetensors", dtype=dtype)


@contextlib.contextmanager
def write_directory(
    directory: Path, *, marker: Mapping[str, object] | None, texts: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Path]:
    """An empty directory aside, which takes the place of `directory` when all is in it, `texts` and `marker` too."""
    directory = directory.resolve()
    aside = directory.with_name(f".{directory.name}.making")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for name, text in texts.items():
            (aside / name).write_text(text)
        if marker is not None:
            (aside / MARKER).write_text(json.dumps(dict(marker), indent=1) + "\n")
        _swap_in(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, *, dtype: str | None) -> None:
    """As a file that anybody may read who can read the others: save_file lets nobody else, not even a server.

    Raises:
      BadInput: where a number is too large for `dtype`.
    """
    path.touch()
    mode = path.stat().st_mode
    if dtype is None:
        arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
        save_arrays(arrays, path, metadata={"format": "pt"})
    else:
        save_file({name: _cast(name, tensor, dtype) for name, tensor in tensors.items()}, path, {"format": "pt"})
    path.chmod(mode)


def _cast(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """In memory of its own: save_file takes no views of one buffer."""
    cast = tensor.to(getattr(torch, dtype), copy=True).contiguous()
    if dtype == "float16" and not bool(cast.isfinite().all()):
        raise BadInput(f"--dtype = float16: {name} has numbers beyond its range: take bfloat16")
    return cast


def _say_dtype(path: Path, dtype: str) -> None:
    """In a model's config.json, for whoever loads it as it is written."""
    config = json.loads(path.read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2) + "\n")


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
