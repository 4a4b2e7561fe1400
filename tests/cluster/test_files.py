"""Files are replaced whole; names that nobody knows get a hint."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from rollcall.cluster.files import write_aside
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
