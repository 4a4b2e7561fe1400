"""Checkpoints: whole or refused, written aside, the newest kept, nothing pickled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rollcall.cluster.checkpoint import (
    CheckpointWriter,
    Manifest,
    latest_checkpoint,
    list_checkpoints,
    load_weights,
    read_state,
    verify,
    write_state,
    write_weights,
)
from rollcall.cluster.errors import CheckpointDamaged
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import pack_weights


def manifest(step: int) -> Manifest:
    return Manifest(
        run_id="r",
        policy_id="policy",
        config_hash="c",
        step=step,
        epoch=1,
        tier="exact",
        ledger={},
        driver={},
        files={},
    )


def write(writer: CheckpointWriter, step: int) -> Path:
    directory = writer.begin(step)
    tensors: dict[str, Array] = {"b": np.arange(3, dtype=np.float32), "a": np.full((2, 2), step, np.float64)}
    write_weights(directory, pack_weights("policy", 1, step, tensors))
    write_state(directory, "learner", {"m": np.array([step], np.int64)}, {"note": step})
    return writer.finish(directory, manifest(step))


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    path = write(CheckpointWriter(tmp_path, keep=3), 7)
    weights = load_weights(path)
    assert (weights.version, weights.policy_id) == (7, "policy")
    assert [name for name, _ in weights.tensors()] == ["b", "a"]  # the order of the network, not of the alphabet
    np.testing.assert_array_equal(dict(weights.tensors())["a"], np.full((2, 2), 7.0))
    state = read_state(path, "learner")
    assert state is not None
    assert state[1] == {"note": 7} and state[0]["m"].tolist() == [7]
    assert read_state(path, "shards") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        write(writer, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000010"]


@pytest.mark.parametrize("name", ["weights.safetensors", "learner.json", "learner.safetensors"])
@pytest.mark.parametrize("how", ["changed", "cut", "missing"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    tmp_path: Path, name: str, how: str
) -> None:
    writer = CheckpointWriter(tmp_path, keep=3)
    write(writer, 1)
    damaged = write(writer, 2) / name
    content = damaged.read_bytes()
    if how == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(content[: len(content) // 2] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointDamaged, match=name):
        verify(damaged.parent)
    path, found, warnings = latest_checkpoint(tmp_path)
    assert path.name == "step-00000001" and found.step == 1
    assert len(warnings) == 1 and name in warnings[0]


def test_a_foreign_directory_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointDamaged, match="no manifest"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "something else"}))
    with pytest.raises(CheckpointDamaged, match="not a manifest"):
        verify(tmp_path)


def test_a_manifest_cannot_point_outside_its_checkpoint(tmp_path: Path) -> None:
    path = write(CheckpointWriter(tmp_path, keep=3), 1)
    text = json.loads((path / "manifest.json").read_text())
    text["files"] = {"../../secret": "0"}
    (path / "manifest.json").write_text(json.dumps(text))
    (tmp_path / "secret").write_text("s")
    with pytest.raises(CheckpointDamaged):
        verify(path)


def test_a_killed_write_leaves_nothing_that_looks_like_a_checkpoint(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=3)
    write(writer, 1)
    aside = writer.begin(2)
    write_state(aside, "learner", {}, {})
    assert latest_checkpoint(tmp_path)[1].step == 1
    CheckpointWriter(tmp_path, keep=3)  # the next driver tidies up
    assert not aside.exists()


def test_without_any_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointDamaged, match="no checkpoint to load"):
        latest_checkpoint(tmp_path)
