"""Files are replaced whole; names that nobody knows get a hint."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from rollcall.cluster import files
from rollcall.cluster.files import append_whole, once_there_is_room, write_aside
from rollcall.cluster.inputs.near_names import did_you_mean


def test_a_file_is_replaced_in_one_move_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    before = path.stat().st_ino
    write_aside(path, "new, with a \u00fc")
    assert path.read_text(encoding="utf-8") == "new, with a \u00fc" and path.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_readable_by_its_owner_alone_whatever_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    (tmp_path / "server.json.new").write_text("half of it")
    write_aside(path, b"secret", private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_bytes() == b"secret"


@pytest.mark.parametrize(
    ("name", "mark", "hint"),
    [
        ("cartpol-ppo", ";", "; did you mean cartpole-ppo?"),
        ("cartpol-ppo", ":", ": did you mean cartpole-ppo?"),
        ("x", ";", ""),
    ],
)
def test_the_nearest_name_is_named_and_nothing_where_none_is_near(name: str, mark: str, hint: str) -> None:
    assert did_you_mean(name, ["pong", "cartpole-ppo"], mark=mark) == hint


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "disk full: waiting for room in"),
        (errno.EDQUOT, "disk full: waiting for room in"),
        (errno.EIO, "disk fails: trying again in"),
    ],
)
def test_a_write_that_the_disk_refuses_is_tried_again_until_it_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    monkeypatch.setattr(files, "LOOK_S", 0.01)
    tries: list[str] = []

    def write() -> int:
        tries.append("try")
        if len(tries) < 4:
            raise OSError(number, os.strerror(number))
        return 7

    assert once_there_is_room(write, tmp_path, undo=lambda: tries.append("undo")) == 7
    assert tries.count("undo") == len(tries) // 2
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith(f"{said} {tmp_path}") and len(told) == 2


def test_nobody_waits_for_room_for_ever_nor_once_the_run_is_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOOK_S", 0.01)

    def refused() -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors says it

    with pytest.raises(RuntimeError):
        once_there_is_room(refused, tmp_path, patience_s=0.05)
    stop = threading.Event()
    stop.set()
    monkeypatch.setattr(files, "no_more_waiting", stop)
    with pytest.raises(RuntimeError):
        once_there_is_room(refused, tmp_path)


def test_what_is_appended_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "log", os.write
    with path.open("ab", buffering=0) as file:
        append_whole(file.fileno(), b"first\n")

        def half(descriptor: int, content: bytes) -> int:
            if len(content) < 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, bytes(content)[: len(content) // 2])

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError):
            append_whole(file.fileno(), b"second\n")
        monkeypatch.undo()
        append_whole(file.fileno(), b"third\n")
    assert path.read_bytes() == b"first\nthird\n"
