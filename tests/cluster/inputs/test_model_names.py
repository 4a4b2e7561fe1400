"""Which names can only be a directory's."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollcall.cluster.inputs.model_names import missing_directory


@pytest.mark.parametrize("name", ["tiny", "gpt2", "Qwen/Qwen3-0.6B", "org/name.with-dots_1"])
def test_a_name_that_a_hub_may_have_is_nobodys_mistake_yet(name: str) -> None:
    assert missing_directory(name) == ""


@pytest.mark.parametrize("name", ["/models/qwen", "./qwen", "../qwen", "models/of/mine", "~/no-such-model"])
def test_a_path_to_nothing_is_said_to_be_one(name: str) -> None:
    assert missing_directory(name) == "there is no such directory"


def test_a_directory_that_is_there_is_right_and_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert missing_directory(tmp_path) == ""
    assert missing_directory(tmp_path / "file") == "there is no such directory"


def test_nobody_reads_the_tilde_but_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert missing_directory("~/model") == f"there is no such directory: write {tmp_path}/model"
