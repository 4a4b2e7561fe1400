"""What a terminal shows while a start waits."""

from __future__ import annotations

import os
import pty
import time
from pathlib import Path

from rollcall.deploy.drive.waiting import waiting


def test_a_terminal_shows_what_is_waited_for_and_for_how_long_and_then_nothing_of_it() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        with waiting("the plan", terminal, after_s=0.05):
            time.sleep(0.3)
        shown = ""
        while "waiting" not in shown or not shown.endswith("\x1b[2K"):  # the kernel hands it over piece by piece
            shown += os.read(ours, 4096).decode()
        assert "waiting for the plan: 0 s\r" in shown
        with waiting("what is there at once", terminal, after_s=10.0):
            pass
        terminal.write(".")
        terminal.flush()
        assert os.read(ours, 4096) == b"."
    os.close(ours)


def test_a_file_gets_nothing_of_it(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file, waiting("the plan", file, after_s=0.0):
        time.sleep(0.05)
    assert (tmp_path / "out").read_text() == ""
