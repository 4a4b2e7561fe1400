"""A private cluster: which of Ray's processes there are, what they listen on, and that they end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from rollcall.cluster.errors import ClusterLost
from rollcall.cluster.store.private_folder import PREFIX
from rollcall.deploy.runtimes.on_ray.calls import WatchedRay
from rollcall.deploy.runtimes.on_ray.members import Members
from rollcall.deploy.runtimes.on_ray.ray_cluster.cluster_watch import ClusterWatch
from tests.needs import needs
from tests.strangers import listens, sockets, what_a_stranger_can_do
from tests.waiting import eventually

SCRIPT = """
import ray
from rollcall.deploy.runtimes.on_ray.ray_cluster.cluster import connect
cluster = connect(num_cpus=1)
print(ray.get(ray.remote(lambda: 6 * 7).remote()), flush=True)
input()
cluster.close()
"""


STANDS = """
import logging, sys, threading, time
import psutil, ray
from rollcall.deploy.runtimes.on_ray.ray_cluster import cluster
logging.basicConfig(format="%(message)s")
cluster.STUCK_S = float(sys.argv[2])


def named(name):
    return [child for child in psutil.Process().children(recursive=True) if child.name() == name]


def kill_once_there_is_a_raylet():
    while not named("raylet"):
        time.sleep(0.01)
    named("gcs_server")[0].kill()


if sys.argv[1] == "starts":
    threading.Thread(target=kill_once_there_is_a_raylet, daemon=True).start()
connected = cluster.connect(num_cpus=1)
named("gcs_server")[0].kill()
if sys.argv[1] == "closes":
    connected.close()
    time.sleep(6)
    sys.exit(0)
ray.nodes()
"""


@pytest.fixture
def driver() -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=pipe, stdout=pipe, text=True, env=environment) as it:
        assert it.stdout is not None and it.stdout.readline() == "42\n"
        yield it
        it.kill()


def rays_own(driver: subprocess.Popen[str]) -> dict[str, list[psutil.Process]]:
    """By program: without workers, and what the driver itself has started."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.Process(driver.pid).children(recursive=True):
        program, *words = process.cmdline() or [""]
        script = next((word for word in words if word.endswith(".py")), "")
        if "/ray/" in program + script or "on_ray/" in script:  # or a worker, or what the driver started itself
            found.setdefault(Path(script or program).name, []).append(process)
    return found


def test_it_is_a_store_of_facts_a_raylet_and_two_agents_that_do_nothing(driver: subprocess.Popen[str]) -> None:
    processes = rays_own(driver)
    assert {kind: len(of_kind) for kind, of_kind in processes.items()} == {
        "gcs_server": 1,
        "raylet": 1,
        "absent_agent.py": 2,
    }
    # It keeps no history of calls: that would grow by 100,000 of them, and nobody could ask for it.
    environment = processes["gcs_server"][0].environ()
    assert environment["RAY_task_events_report_interval_ms"] == "0"
    assert environment["RAY_gcs_rpc_server_reconnect_timeout_s"] == "300", "who is slow is not taken for gone"
    for agent in processes["absent_agent.py"]:
        assert not agent.net_connections() and sum(agent.cpu_times()[:2]) < 0.3
    driver.communicate("\n", timeout=30)
    assert driver.returncode == 0
    eventually(lambda: not any(process.is_running() for group in processes.values() for process in group), 5)


def test_its_agents_end_with_a_raylet_that_was_killed(driver: subprocess.Popen[str]) -> None:
    processes = rays_own(driver)
    processes["raylet"][0].kill()
    eventually(lambda: not any(agent.is_running() for agent in processes["absent_agent.py"]), 5)


def folder_of(driver: subprocess.Popen[str]) -> Path:
    [raylet] = rays_own(driver)["raylet"]
    [named] = [word for word in raylet.cmdline() if word.startswith("--raylet_socket_name=")]
    return Path(named.partition("=")[2]).parents[3]


def test_it_listens_on_loopback_alone(driver: subprocess.Popen[str]) -> None:
    found = listens(driver.pid)
    assert len(found) >= 4 and {*found.values()} == {"127.0.0.1"}


def test_its_folder_is_shut_to_others_and_goes_with_it(driver: subprocess.Popen[str]) -> None:
    folder = folder_of(driver)
    assert folder.name.startswith(PREFIX) and folder.stat().st_mode & 0o777 == 0o700
    driver.communicate("\n", timeout=30)
    assert not folder.exists()


def test_its_folder_goes_when_the_driver_is_killed(driver: subprocess.Popen[str]) -> None:
    folder = folder_of(driver)
    driver.kill()
    eventually(lambda: not folder.exists(), 15)


@needs("root")
def test_another_user_reaches_nothing_of_it(driver: subprocess.Popen[str]) -> None:
    """Files, sockets and folders are out of reach; a port wants the cluster's token of whoever speaks to it."""
    folder = folder_of(driver)
    assert any(path.startswith(f"{folder}/") for path in sockets(driver.pid))
    assert what_a_stranger_can_do(driver.pid, folder) == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda members, _: members.server(),
        lambda members, _: members.actor("gym-0", 0),
        lambda members, _: members.learners(),
        lambda members, _: members.evaluator(),
        lambda members, _: members.scoring(),
        lambda members, _: members.preference_trainer(),
        lambda _, api: api.kill(None),
        lambda _, api: api.nodes(),
    ],
)
def test_a_lost_cluster_is_asked_for_nothing_as_ray_would_wait_for_a_minute_and_abort_the_driver(
    ask: Callable[[Members, WatchedRay], object],
) -> None:
    def look() -> None:
        raise ClusterLost("gone")

    composition = SimpleNamespace(needs=SimpleNamespace(working_directory="", run_directory=Path()), objects={})
    members = Members(cast(Any, composition), cast(Any, None), look)
    with pytest.raises(ClusterLost, match="gone"):
        ask(members, WatchedRay(look))


def stands(where: str, stuck_s: float = 3) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", STANDS, where, str(stuck_s)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.mark.long
def test_a_cluster_whose_process_dies_while_it_starts_is_lost_and_so_started_again_by_a_run() -> None:
    done = stands("starts", stuck_s=50)  # Ray itself gives up before
    assert done.returncode == 1
    assert "ClusterLost: the private Ray cluster is lost: a process of it died while it started" in done.stderr


def test_a_guard_finds_what_appears_while_a_cluster_starts_and_dies(tmp_path: Path) -> None:
    shutil.copy("/bin/sleep", tmp_path / "gcs_server")
    watch, worst = ClusterWatch(()), threading.Event()
    watch.guard(0.2, worst.set, children=psutil.Process().children, every_s=0.05)
    with subprocess.Popen([tmp_path / "gcs_server", "60"]) as started:
        assert not worst.wait(0.5), "it lives"
        started.kill()
        assert worst.wait(5) and watch.is_lost


def test_who_stands_in_a_call_of_a_lost_cluster_is_ended_and_told_how_to_go_on() -> None:
    """Ray's own end of it, an abort, comes after SLOW_S: five minutes."""
    done = stands("asks")
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "private Ray cluster" in line]
    assert line.startswith("the private Ray cluster was lost 3 s ago") and "rollcall resume" in line


def test_who_closes_a_lost_cluster_is_not_ended() -> None:
    done = stands("closes")
    assert done.returncode == 0, done.stderr
