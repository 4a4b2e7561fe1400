"""What becomes of a private cluster's processes when its driver is killed, at whatever moment of its start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import eventually

DRIVER = """
import time, ray
from rollcall.deploy.runtimes.on_ray.ray_cluster.cluster import connect
connect(num_cpus=1)
@ray.remote(num_cpus=0)
class Member:
    def here(self): pass
ray.get([Member.remote().here.remote() for _ in range(1)])
print("up", flush=True)
time.sleep(600)
"""
GONE_WITHIN_S = 5.0


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def _children(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(driver.pid).children(recursive=True)


def _titles(driver: subprocess.Popen[str]) -> str:
    found = []
    for child in _children(driver):
        try:
            found.append(" ".join(child.cmdline()))
        except psutil.Error:
            continue
    return "\n".join(found)


@pytest.mark.parametrize("moment", ["gcs_server", "raylet", "ray::"])
def test_a_driver_killed_while_ray_starts_leaves_no_process_for_long(tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as driver:
        eventually(lambda: moment in _titles(driver), 120, f"a process called {moment}")
        children = _children(driver)
        driver.kill()
    assert len(children) > 1
    eventually(lambda: not _alive(children), GONE_WITHIN_S, f"the end of {children}")


def test_what_is_signalled_to_the_drivers_group_reaches_the_driver_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, process_group=0) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == "up\n"
        children = _children(driver)
        groups = {os.getpgid(child.pid) for child in _alive(children)}
        os.killpg(driver.pid, signal.SIGKILL)
    assert driver.pid not in groups
    eventually(lambda: not _alive(children), GONE_WITHIN_S, f"the end of {children}")
