"""A policy as a directory in Hugging Face's format, which transformers and vLLM load: the model that the run began
with, and a checkpoint's weights in place of its own. Copies files and arrays; must never compute with the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.numpy import save_file

from rollcall.actors.engine.checkpoint_names import CheckpointNames
from rollcall.actors.engine.published_weights import published_model
from rollcall.cluster.checkpoint import read_manifest
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.records import Weights
from rollcall.deploy.config.settings import learns_from_data

MARKER = "rollcall.json"  # in every export, and nowhere else: what has it may be replaced by another export
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # config, generation config and tokenizer


def export_policy(target: str | Path, directory: str | Path | None = None) -> Path:
    """Writes the policy of a language run's latest whole checkpoint, or of the named one, to `directory` (default:
    <run>/policy), in one move; an earlier export there is replaced. Returns the directory.

    Raises:
      BadInput: when there is no such run or checkpoint, it is not a language run's, or `directory` holds anything else.
      CheckpointDamaged: as `rollcall eval` would.
    """
    from rollcall.deploy.drive.runs import find_checkpoint
    from rollcall.deploy.kinds import policies

    if learns_from_data(find_checkpoint(target)[0] / "config.yaml"):
        from rollcall.deploy.kinds import preference_runs

        return preference_runs.export(target, None if directory is None else Path(directory))
    loaded = policies.load_language(target)
    goal = loaded.run_directory / "policy" if directory is None else Path(directory)
    source = model_source(loaded.parts.model_directory)
    if goal.resolve() in (source.resolve(), loaded.parts.given_model.resolve()):
        raise BadInput(f"{goal}: the model that the run began with, and begins with again: export to another directory")
    check_free(goal)
    weights, config_hash = loaded.weights, read_manifest(loaded.checkpoint).config_hash
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
