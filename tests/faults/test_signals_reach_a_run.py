"""A run under way is signalled, or loses the terminal, pipe or file that it prints to."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import SMALL, Bench

FOR_EVER = "total_learner_steps=1000000"


def test_a_sigterm_for_the_whole_process_group_stops_a_ray_run_with_a_checkpoint_within_seconds(bench: Bench) -> None:
    run = bench.train(FOR_EVER, "learner.compile=off")
    run.wait_for_step(2)
    began = time.monotonic()
    os.killpg(run.process.pid, signal.SIGTERM)
    run.wait()
    assert time.monotonic() - began < 20
    assert run.process.returncode == 130, run.errors
    assert run.summary["status"] == "stopped" and run.summary["restarts"] == 0
    assert run.summary["learner_steps"] == len(run.steps())
    assert "go on with: rollcall resume" in run.output
    assert bench.audit()[0] == 0


def test_a_closed_terminal_stops_a_run_with_a_checkpoint(bench: Bench) -> None:
    run = bench.train(FOR_EVER, "runtime=serial", "learner.compile=off")
    run.wait_for_step(2)
    run.process.send_signal(signal.SIGHUP)
    run.wait()
    assert run.process.returncode == 130, run.errors
    assert run.summary["status"] == "stopped" and "SIGHUP: stopping with a checkpoint" in run.errors


COMMAND = [sys.executable, "-m", "rollcall.deploy.cli", "train", "cartpole-ppo", *SMALL]
SHORT = ["runtime=serial", "learner.compile=off", "total_learner_steps=20", "name=run"]


def _completed(bench: Bench) -> bool:
    return '"status": "completed"' in (bench.folder / "runs" / "run" / "summary.json").read_text()


def test_a_run_whose_reader_has_gone_goes_on_to_its_end(bench: Bench) -> None:
    with subprocess.Popen(
        [*COMMAND, *SHORT], cwd=bench.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == "run directory: runs/run\n"
        run.stdout.close()  # as by `| head -1`
        run.stderr.close()
        assert run.wait(120) == 0
    assert _completed(bench)
    assert "standard output is closed (Broken pipe)" in (bench.folder / "runs/run/logs/driver.log").read_text()


@pytest.mark.parametrize("also", [[], ["total_learner_steps=wrong"]])
def test_a_run_whose_terminal_has_gone_ends_with_the_exit_code_that_it_would_have_had(
    bench: Bench, also: list[str]
) -> None:
    ours, terminal = pty.openpty()
    with subprocess.Popen([*COMMAND, *SHORT, *also], cwd=bench.folder, stdout=terminal, stderr=terminal) as run:
        os.close(terminal)
        os.close(ours)
        assert run.wait(120) == (2 if also else 0)
    assert also or _completed(bench)


@pytest.mark.long
def test_what_is_printed_to_a_full_disk_is_lost_and_nothing_else(bench: Bench) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *SHORT], cwd=bench.folder, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr
    assert _completed(bench)


def test_a_run_under_nohup_outlives_its_terminal(bench: Bench) -> None:
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    with subprocess.Popen(
        [*ignoring, *COMMAND, *SHORT],
        cwd=bench.folder,
        stdout=subprocess.PIPE,
        text=True,
    ) as kept:
        assert kept.stdout is not None and kept.stdout.readline()
        for _ in range(5):
            time.sleep(0.5)
            kept.send_signal(signal.SIGHUP)
        kept.communicate(timeout=120)
        assert kept.returncode == 0
