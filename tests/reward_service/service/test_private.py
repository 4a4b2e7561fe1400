"""A service as a child: its token is in no process list, it dies with its parent, and comes back at its port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rollcall.cluster.errors import BadInput, RewardUnavailable, RollcallError
from rollcall.reward_service.client import RewardClient
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.service import private
from rollcall.reward_service.service.private import PrivateService, start_private
from rollcall.reward_service.service.service_config import ServiceConfig
from tests.waiting import eventually

CONFIG = ServiceConfig.model_validate({"models": {"exact": {"kind": "exact_match"}}, "drain_timeout_s": 2})
RIGHT = ScoreItem(id="i", prompt="1 + 1", response="2", metadata={"answer": "2"})

# Starts a service, says where it is, and waits to be killed. The thread that starts it ends at once: the kernel's
# signal at the end of a thread must not end the service.
PARENT = """
import sys, threading, time
from pathlib import Path
from rollcall.reward_service.service.private import start_private
from rollcall.reward_service.service.service_config import ServiceConfig
def start():
    service = start_private(ServiceConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
    keep.append(service)
keep = []
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(0.3)
print(keep[0].pid, keep[0].alive(), flush=True)
time.sleep(60)
"""


def ask(service: PrivateService) -> float | None:
    with RewardClient(service.url, service.token) as client:
        return client.score([RIGHT], deadline_s=30).results[0].score


def test_it_serves_by_a_token_that_stands_in_no_process_list_and_comes_back_at_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROLLCALL_REWARD_TOKEN", raising=False)
    with start_private(CONFIG, tmp_path) as service:
        assert ask(service) == 1.0
        secret = service.token.get_secret_value()
        child = psutil.Process(service.pid)
        assert secret not in " ".join(child.cmdline()) and secret not in str(child.environ())
        assert all(secret not in path.read_text() for path in tmp_path.iterdir()) and secret not in repr(service.token)
        with RewardClient(service.url) as stranger, pytest.raises(Exception, match="401"):
            stranger.models()
        before = service.url
        os.kill(service.pid, signal.SIGKILL)
        eventually(lambda: not service.alive())
        service.start()
        assert service.url == before and ask(service) == 1.0
        process = psutil.Process(service.pid)
    assert not process.is_running()


def test_it_ends_with_its_parent_but_not_with_the_thread_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, CONFIG.model_dump_json(), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, alive = parent.stdout.readline().split()
        assert alive == "True"
        child = psutil.Process(int(pid))
        parent.kill()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 15)


def test_settings_that_cannot_be_used_are_told_in_one_line(tmp_path: Path) -> None:
    config = ServiceConfig.model_validate({"models": {"main": {"kind": "reward_model", "path": str(tmp_path / "no")}}})
    with pytest.raises(BadInput, match="no"):
        start_private(config, tmp_path)


def test_one_that_is_not_ready_in_time_is_ended_and_its_log_named(tmp_path: Path) -> None:
    service = PrivateService(CONFIG, tmp_path, start_timeout_s=0.05)
    with pytest.raises(RewardUnavailable, match=r"reward_service\.log"):
        service.start()
    assert not service.alive()
    service.stop()


def test_one_that_is_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    service, killed = PrivateService(CONFIG, tmp_path), list[int]()

    def kill_the_first_two() -> None:
        if service.alive() and service.pid not in killed and len(killed) < 2:
            killed.append(service.pid)
            os.kill(service.pid, signal.SIGKILL)

    service.start(kill_the_first_two)
    assert len(killed) == 2 and ask(service) == 1.0
    service.stop()


def test_one_that_is_killed_whenever_it_starts_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "MOST_KILLED", 2)
    service, killed = PrivateService(CONFIG, tmp_path), set[int]()

    def kill() -> None:
        if service.alive():
            killed.add(service.pid)
            os.kill(service.pid, signal.SIGKILL)

    with pytest.raises(RewardUnavailable, match="does not start"):
        service.start(kill)
    assert len(killed) == 3
    service.stop()


def test_a_start_that_nobody_waits_for_any_more_ends_at_the_next_look(tmp_path: Path) -> None:
    looks = iter((False, True))

    def look() -> None:
        if next(looks):
            raise RollcallError("stopped")

    began = time.monotonic()
    with pytest.raises(RollcallError, match="stopped"):
        start_private(CONFIG, tmp_path, look)
    assert time.monotonic() - began < 30 and next(looks, None) is None
