"""Checkpoints: a directory written aside, hashed, and renamed into place; the manifest is written last.
Tensors are safetensors, the rest JSON; nothing is pickled. Must never know what the tensors mean."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from rollcall.cluster.errors import CheckpointDamaged
from rollcall.cluster.files import once_there_is_room
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import BFLOAT16, Weights, pack_weights

CHECKPOINT_SCHEMA = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"

Tier = Literal["exact", "resumable"]


class Manifest(BaseModel):
    """What a checkpoint holds and what it is good for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = CHECKPOINT_SCHEMA
    run_id: str
    policy_id: str
    config_hash: str
    step: int  # learner steps done; also the policy version
    epoch: int
    tier: Tier
    ledger: dict[str, Any]  # the ledger's position
    driver: dict[str, Any]  # the coordinator's counters
    files: dict[str, str]  # name -> xxh3-128 of its bytes


def write_state(directory: Path, name: str, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Writes `<name>.safetensors` and `<name>.json` into a checkpoint that is being made."""
    contiguous = {key: np.asarray(value, order="C") for key, value in tensors.items()}
    files = directory / f"{name}.safetensors", directory / f"{name}.json"

    def write() -> None:
        save_file(contiguous, files[0])
        files[1].write_text(json.dumps(meta))

    def undo() -> None:
        for file in files:
            file.unlink(missing_ok=True)

    once_there_is_room(write, directory.parent, undo=undo)


def read_state(checkpoint: Path, name: str) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """What write_state wrote; None if the checkpoint has no such state."""
    if not (checkpoint / f"{name}.json").exists():
        return None
    tensors: dict[str, Array] = load_file(checkpoint / f"{name}.safetensors")
    meta: dict[str, Any] = json.loads((checkpoint / f"{name}.json").read_text())
    return tensors, meta


def write_weights(directory: Path, weights: Weights) -> None:
    """As the checkpoint's policy, which is never in a dtype that numpy lacks."""
    assert BFLOAT16 not in weights.buffers
    tensors = {name: np.asarray(array, order="C") for name, array in weights.tensors()}
    write_state(directory, "weights", tensors, {"names": list(tensors)})


def load_weights(checkpoint: Path) -> Weights:
    """The policy of a checkpoint, its hashes verified.

    Raises:
      CheckpointDamaged: with what is wrong and which file.
    """
    manifest = verify(checkpoint)
    tensors: dict[str, Array] = load_file(checkpoint / WEIGHTS)
    order = json.loads((checkpoint / "weights.json").read_text())["names"]
    return pack_weights(manifest.policy_id, manifest.epoch, manifest.step, {name: tensors[name] for name in order})


class CheckpointWriter:
    """Makes the checkpoints of one run under `<run>/checkpoints/`."""

    def __init__(self, run_directory: Path, *, keep: int) -> None:
        self.run_directory = run_directory
        self._root = run_directory / "checkpoints"
        self._root.mkdir(parents=True, exist_ok=True)
        self.keep = keep
        for leftover in self._root.glob(".making-*"):  # of a driver that was killed in the middle
            shutil.rmtree(leftover)

    def begin(self, step: int) -> Path:
        """An empty directory aside, into which everybody writes their part."""
        directory = self._root / f".making-{step:08d}"
        if directory.exists():
            shutil.rmtree(directory)
        once_there_is_room(directory.mkdir, self._root)
        return directory

    def finish(self, directory: Path, manifest: Manifest) -> Path:
        """Hashes the parts, writes the manifest, renames the directory into place, and prunes the oldest."""
        for part in directory.iterdir():
            _sync(part)
        files = {part.name: _file_hash(part) for part in sorted(directory.iterdir())}
        content = manifest.model_copy(update={"files": files}).model_dump_json(indent=1)
        once_there_is_room(lambda: (directory / MANIFEST).write_text(content), self._root)
        _sync(directory / MANIFEST)
        _sync(directory)
        final = self._root / f"step-{manifest.step:08d}"
        if final.exists():  # of a timeline that a restore has ended
            shutil.rmtree(final)
        directory.rename(final)
        _sync(self._root)
        for old in list_checkpoints(self.run_directory)[: -self.keep]:
            shutil.rmtree(old)
        return final

    def give_up(self, directory: Path) -> None:
        """A checkpoint that was begun and will not be finished."""
        shutil.rmtree(directory, ignore_errors=True)

    def discard_after(self, step: int) -> None:
        """Removes checkpoints of steps that a restore has rolled back."""
        for path in list_checkpoints(self.run_directory):
            if checkpoint_step(path) > step:
                shutil.rmtree(path)


def checkpoint_step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def list_checkpoints(run_directory: Path) -> list[Path]:
    """Complete ones, oldest first."""
    root = run_directory / "checkpoints"
    return sorted(path for path in root.glob("step-????????") if (path / MANIFEST).exists())


def read_manifest(checkpoint: Path) -> Manifest:
    """What a checkpoint says of itself; whether its files are whole, `verify` finds.

    Raises:
      CheckpointDamaged: when there is no manifest, or it cannot be read.
    """
    if not (checkpoint / MANIFEST).is_file():
        raise CheckpointDamaged(f"{checkpoint}: not a checkpoint: it has no {MANIFEST}")
    try:
        return Manifest.model_validate_json((checkpoint / MANIFEST).read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointDamaged(f"{checkpoint / MANIFEST}: not a manifest of Rollcall's ({first})") from None


def verify(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint whose every file has the hash that the manifest gives.

    Raises:
      CheckpointDamaged: naming the file and what is wrong.
    """
    manifest = read_manifest(checkpoint)
    if manifest.schema_version != CHECKPOINT_SCHEMA:
        raise CheckpointDamaged(
            f"{checkpoint}: schema {manifest.schema_version}; this version of Rollcall reads {CHECKPOINT_SCHEMA}"
        )
    for name, expected in manifest.files.items():
        path = checkpoint / name
        if "/" in name or not path.is_file():
            raise CheckpointDamaged(f"{path}: named in the manifest, but missing")
        if _file_hash(path) != expected:
            raise CheckpointDamaged(f"{path}: damaged: its hash is not the one in the manifest")
    return manifest


def latest_checkpoint(run_directory: Path) -> tuple[Path, Manifest, list[str]]:
    """The newest checkpoint that is whole, its manifest, and a line for each newer one that is damaged.

    Raises:
      CheckpointDamaged: if there is none to be had.
    """
    warnings: list[str] = []
    for path in reversed(list_checkpoints(run_directory)):
        try:
            manifest = verify(path)
            load_file(path / WEIGHTS)
        except (CheckpointDamaged, SafetensorError) as error:
            warnings.append(str(error))
            continue
        return path, manifest, warnings
    detail = f": {warnings[0]}" if warnings else ""
    raise CheckpointDamaged(f"{run_directory}: no checkpoint to load{detail}")


def damaged_files(run_directory: Path) -> list[str]:
    """A line for each kept checkpoint whose files are not what its manifest says. Of one whose manifest cannot be read
    the audit of the books speaks; one that a run that goes on prunes meanwhile is none."""
    found: list[str] = []
    for path in list_checkpoints(run_directory):
        try:
            read_manifest(path)
        except CheckpointDamaged:
            continue
        try:
            verify(path)
            if (path / WEIGHTS).is_file():
                with safe_open(path / WEIGHTS, "numpy") as weights:
                    weights.keys()
        except (CheckpointDamaged, SafetensorError, OSError) as error:
            if path.exists():
                found.append(f"checkpoint {path.name}: {str(error).removeprefix(f'{path}/')}")
    return found


def _file_hash(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
