"""What a run's processes print without end does not fill its disk, and its newest lines are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rollcall.deploy.rundir.printed_logs import EVERY_S, PrintedLogs


def test_a_log_is_shortened_under_the_hands_of_who_prints_into_it(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    now = [0.0]
    logs = PrintedLogs(tmp_path, most_bytes=1000, clock=lambda: now[0])
    chatty, quiet, own = (tmp_path / "logs" / name for name in ("gym-0.log", "learner-0.log", "driver.log"))
    quiet.write_text("one line\n")
    own.write_text("x" * 5000)  # it has a way of its own
    writer = os.open(chatty, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(300):
        os.write(writer, f"line {number}\n".encode())
        now[0] += EVERY_S / 50
        logs.on_step({})
        size = sum(path.stat().st_size for path in (tmp_path / "logs").glob("gym-0.log*"))
        assert size <= 1000 + 1000 + 50 * len("line 100\n"), "twice the bound, and what comes between two looks"
    os.close(writer)
    before, after = chatty.with_name("gym-0.log.1").read_text().split("\n"), chatty.read_text().split("\n")
    newest = [*before[:-1], *after[:-1]]
    assert newest == [f"line {number}" for number in range(300 - len(newest), 300)] and len(newest) > 100
    assert "\0" not in chatty.read_text()
    assert (quiet.read_text(), own.stat().st_size) == ("one line\n", 5000)


def test_on_a_full_disk_it_is_shortened_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "gym-0.log"
    path.write_text("a line\n" * 200)

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    PrintedLogs(tmp_path, most_bytes=1000).close({})
    assert path.stat().st_size == 0 and list(path.parent.iterdir()) == [path]
