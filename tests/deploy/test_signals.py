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
