"""What docs/start/stopwatch.md says one has to write: its counts are those of the code that stands on it, and that code
is what it is said to be."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from benchmarks.first_hour import PAGE, carried_out, sections
from rollcall.deploy.config import plugins
from tests.needs import require

SECTIONS = {section.title: section for section in sections(PAGE.read_text())}
CONTROL = [title for title, section in SECTIONS.items() if not any("arithmetic" in line for line in section.commands)]


def test_the_tables_counts_are_those_of_the_code_on_the_page() -> None:
    rows = re.findall(r"^\| (.+?) \| 1 command \| (\d+)[^|]* \| (\w+) \| (\d+)", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len(SECTIONS) == 8
    for (what, own, peer, peers), section in zip(rows, SECTIONS.values(), strict=True):
        assert section.title.lower().startswith(what.partition(":")[0].lower()), what
        assert int(own) == section.own_lines, what
        if section.peer_lines:
            assert int(peers) == section.peer_lines, what
            assert all(name.startswith((f"{peer.lower()}_", "my_")) for name in section.files), what
        for name, text in section.files.items():
            compile(text, name, "exec")


def test_the_task_and_the_algorithm_on_the_page_are_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for section in SECTIONS.values():
        for name, text in section.files.items():
            (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for name in ("my_task", "my_algorithm"):
        sys.modules.pop(name, None)
    found = plugins.find(plugins.TASK, "my_task:Backwards")
    assert found(found.Config()).rows("train")[0] == {"prompt": "aaa>", "answer": "aaa"}
    algorithm = plugins.find(plugins.ALGORITHM, "my_algorithm:Small")
    assert algorithm.Config(name="my_algorithm:Small").epochs >= 1


@pytest.mark.long
@pytest.mark.parametrize("title", CONTROL)
def test_the_commands_for_control_run_as_they_stand(title: str, tmp_path: Path) -> None:
    """Made shorter, each in an empty folder."""
    if "trial" in title:
        require("optuna")
    carried_out(SECTIONS[title], tmp_path, short=True)


@pytest.mark.prove
@pytest.mark.parametrize("title", [title for title in SECTIONS if title not in CONTROL])
def test_the_commands_for_language_run_as_they_stand(title: str, tmp_path: Path) -> None:
    require("vllm", "transformers", "peft")
    carried_out(SECTIONS[title], tmp_path, short=True)
