"""Where a signal ends a run at once, and where it is let come to a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rollcall.deploy.drive.signals import StoppedAtOnce, nothing_to_keep, stop_on_signals

STOPS_WITHIN_S = 3.0


def test_a_signal_is_noted_and_raises_only_where_there_is_nothing_to_keep(tmp_path: Path) -> None:
    with stop_on_signals(tmp_path) as stop:
        with pytest.raises(StoppedAtOnce), nothing_to_keep():
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
    with stop_on_signals(tmp_path) as stop:
        with nothing_to_keep():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()


def test_a_signal_from_just_before_ends_the_beginning_too(tmp_path: Path) -> None:
    with stop_on_signals(tmp_path):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StoppedAtOnce), nothing_to_keep():
            raise AssertionError("it begins in spite of it")
    with nothing_to_keep():  # nobody takes signals any more: the old one is forgotten
        pass


STUCK = """
import hashlib
from pathlib import Path
from rollcall.deploy.drive.signals import nothing_to_keep, stop_on_signals
with stop_on_signals(Path(".")), nothing_to_keep():
    print("loading", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)  # minutes within C, where no handler of Python's can run
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_hears_no_signal_while_it_loads_ends_within_seconds(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", STUCK]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "loading\n"
        time.sleep(0.5)  # it is within the library by then
        began = time.monotonic()
        run.send_signal(number)
        _, errors = run.communicate(timeout=30)
    assert time.monotonic() - began < STOPS_WITHIN_S
    assert (
        run.returncode == 1 and errors.strip() == "rollcall: error: stopped before anything was learnt that is not kept"
    )


@pytest.mark.prove
@pytest.mark.parametrize("after_s", [1, 2, 4, 6, 8, 10, 14, 18])
@pytest.mark.parametrize("recipe", ["cartpole-ppo", "arithmetic-grpo"])
def test_ctrl_c_during_a_start_ends_everything_within_three_seconds(tmp_path: Path, recipe: str, after_s: int) -> None:
    command = [sys.executable, "-m", "rollcall.deploy.cli", "train", recipe]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        time.sleep(after_s)
        children = psutil.Process(run.pid).children(recursive=True)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
        assert time.monotonic() - began < STOPS_WITHIN_S, errors
        assert "Traceback" not in errors
    psutil.wait_procs(children, timeout=1.0)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
