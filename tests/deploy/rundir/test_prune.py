"""`rollcall prune` and `rollcall audit` of a real run: nobody misses what is pruned, and damaged weights are told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.books.sealed import read_index
from rollcall.cluster.checkpoint import list_checkpoints
from rollcall.cluster.store.run_lock import DirectoryLock
from rollcall.deploy.cli import main
from tests.runs import trained as two_steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a completed run of two steps, runs/short."""
    with two_steps(tmp_path_factory.mktemp("work"), "short") as folder:
        yield folder


@pytest.fixture
def short(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in a working directory of its own."""
    shutil.copytree(trained, tmp_path / "work", ignore=shutil.ignore_patterns("*.sock", "lock"))
    monkeypatch.chdir(tmp_path / "work")
    return Path("runs/short")


def made_longer(run: Path) -> dict[str, Any]:
    total = 2 * int(json.loads((run / "summary.json").read_text())["learner_steps"])
    assert main.main(["resume", str(run), f"total_learner_steps={total}", "total_env_steps=null"]) == 0
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def test_a_pruned_run_balances_and_goes_on_to_the_same_weights(short: Path) -> None:
    as_it_was = short.with_name("as-it-was")
    shutil.copytree(short, as_it_was, ignore=shutil.ignore_patterns("lock"))
    (short / "checkpoints" / ".making-00000009").mkdir()
    assert main.main(["prune", "short", "--newest-only"]) == 0
    assert len(list_checkpoints(short)) == 1 and not list((short / "checkpoints").glob(".making-*"))
    assert read_index(short).end > 0
    assert (short / "logs" / "consumption.jsonl").stat().st_size == 0
    assert main.main(["audit", "short"]) == 0
    assert main.main(["prune", "short"]) == 0, "twice is as once"
    assert made_longer(short)["weights_hash"] == made_longer(as_it_was)["weights_hash"]
    assert main.main(["audit", "short"]) == 0


def test_what_prune_leaves_by_default_can_be_gone_back_to_at_every_checkpoint(short: Path) -> None:
    kept = list_checkpoints(short)
    assert len(kept) > 1
    assert main.main(["prune", "short"]) == 0
    assert list_checkpoints(short) == kept
    for later in kept[1:]:
        shutil.rmtree(later)
    (short / "summary.json").unlink()
    assert main.main(["resume", "short"]) == 0
    assert main.main(["audit", "short"]) == 0


def test_a_run_that_goes_on_is_not_pruned(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = DirectoryLock(short)
    try:
        assert main.main(["prune", "short"]) == 2
    finally:
        lock.release()
    assert "driver" in capsys.readouterr().err


def test_an_audit_names_weights_that_are_damaged(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in list_checkpoints(short):
        content = bytearray((checkpoint / "weights.safetensors").read_bytes())
        content[-5] ^= 1
        (checkpoint / "weights.safetensors").write_bytes(content)
    assert main.main(["audit", "short"]) == 1
    said = capsys.readouterr().out
    for checkpoint in list_checkpoints(short):
        assert f"checkpoint {checkpoint.name}: weights.safetensors: damaged" in said
