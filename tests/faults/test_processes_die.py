"""Members of a run are killed, hang, or lie, in mid-run; the run goes on, and the books balance."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from tests.runs import Bench, Run


def assert_books_balance(bench: Bench, run: Run) -> dict[str, Any]:
    code, text = bench.audit()
    assert code == 0, text
    books: dict[str, Any] = run.summary["ledger"]
    assert books["in_flight"] == 0
    assert books["issued"] == books["committed"] + books["dropped"] + books["rolled_back"]
    return books


@pytest.mark.long
def test_whatever_is_killed_is_replaced_and_nothing_is_counted_twice(bench: Bench) -> None:
    """One after the other in one run: an actor, the parameter server, Redis, and the learner, which alone takes the run
    back to its newest checkpoint, in a new epoch."""
    run = bench.train("total_learner_steps=100", "actors.num=2", "checkpoint.every_steps=10")
    for step, title in ((5, "GymActorProcess"), (25, "ParameterServerProcess"), (45, "valkey-server")):
        run.wait_for_step(step)
        run.kill(title)
    run.wait_for_step(65)
    assert max(record["epoch"] for record in run.steps()) == 1, "so far nothing was taken back"
    run.kill("LearnerProcess")
    run.wait()
    assert run.process.returncode == 0, run.errors
    assert run.summary["restarts"] >= 3
    assert "raylet" not in run.output + run.errors, "Ray's own words are in the log"
    assert "Ray says: A worker died" in (run.directory / "logs" / "driver.log").read_text()
    books = assert_books_balance(bench, run)
    assert books["committed"] == 100 * 4
    assert books["dropped_by_reason"].get("actor_died", 0) >= 1
    assert books["dropped_by_reason"].get("restored", 0) >= 1
    assert max(record["epoch"] for record in run.steps()) == 2


@pytest.mark.long
def test_a_killed_driver_leaves_no_child_and_resumes_to_the_weights_of_an_uninterrupted_run(bench: Bench) -> None:
    settings = ("total_learner_steps=30", "max_policy_lag=0", "checkpoint.every_steps=10")
    whole = bench.train(*settings, "runtime=serial", name="whole").wait().summary["weights_hash"]
    run = bench.train(*settings)
    run.wait_for_step(15)
    children = psutil.Process(run.process.pid).children(recursive=True)
    assert len(children) >= 5
    run.process.kill()
    run.process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    run.wait()
    assert bench.audit()[0] == 0  # of a run that is neither finished nor alive
    resumed = bench.start("resume", "run").wait()
    assert resumed.process.returncode == 0, resumed.errors
    assert resumed.summary["weights_hash"] == whole
    books = assert_books_balance(bench, run)
    assert books["committed"] == 30 * 4
    assert [record["step"] for record in run.steps()] == list(range(30))


ENVS = """
import os, time
import gymnasium as gym
import numpy as np

class Faulty(gym.Wrapper):
    def __init__(self, kind, marker):
        super().__init__(gym.make("CartPole-v1"))
        self.kind, self.marker, self.count = kind, marker, 0

    def first_here(self):  # two actors may come at the same moment: the file system lets one through
        try:
            os.close(os.open(f"{self.marker}-{self.count}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def step(self, action):
        self.count += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.kind == "nan-always":
            reward = float("nan")
        if self.kind == "raise-always" and self.count > 50:
            raise RuntimeError("the cart has lost a wheel")
        if self.count == 300 and self.first_here():
            if self.kind == "raise":
                raise RuntimeError("the cart has lost a wheel")
            if self.kind == "hang":
                print("the cart stands still")
                time.sleep(3600)
            if self.kind == "nan":
                observation = np.full_like(observation, np.nan)
        if self.count == 400 and self.kind == "nan" and self.first_here():
            reward = float("nan")
        return observation, reward, terminated, truncated, info
"""


def faulty(bench: Bench, kind: str) -> tuple[str, ...]:
    (bench.folder / "faulty.py").write_text(
        ENVS + f"\ndef make():\n    return Faulty({kind!r}, {str(bench.folder / 'marker')!r})\n"
    )
    return ("env=faulty:make", "total_learner_steps=60", "actors.num=2")


def test_an_env_that_raises_is_restarted_its_boundary_masked_and_counted(bench: Bench) -> None:
    run = bench.train(*faulty(bench, "raise"), "runtime=serial").wait()
    assert run.process.returncode == 0, run.errors
    assert run.summary["env_restarts"] == 1
    books = assert_books_balance(bench, run)
    assert books["dropped"] == 0


@pytest.mark.parametrize("runtime", ["serial", pytest.param("ray", marks=pytest.mark.prove)])
def test_an_env_that_always_raises_stops_the_run_with_its_own_traceback(bench: Bench, runtime: str) -> None:
    run = bench.train(*faulty(bench, "raise-always"), "actors.max_env_restarts=2", f"runtime={runtime}").wait()
    assert run.process.returncode == 1
    assert "the cart has lost a wheel" in (run.directory / "logs" / "driver.log").read_text()
    assert "faulty.py" in (run.directory / "logs" / "driver.log").read_text()
    assert run.summary["status"] == "failed"
    (line,) = run.errors.strip().splitlines()
    fault = 'raise RuntimeError("the cart has lost a wheel")'
    number = next(n for n, text in enumerate(ENVS.splitlines(), start=1) if text.strip() == fault)
    place = f"{bench.folder}/faulty.py, line {number}, in step: {fault}: shard "
    assert line.startswith(f"rollcall: error: {place}")


def test_nan_stops_that_trajectory_and_not_the_run(bench: Bench) -> None:
    run = bench.train(*faulty(bench, "nan"), "runtime=serial").wait()
    assert run.process.returncode == 0, run.errors
    books = assert_books_balance(bench, run)
    assert books["dropped_by_reason"] == {"non_finite": 2}  # an observation, and a reward


@pytest.mark.parametrize("runtime", ["serial", pytest.param("ray", marks=pytest.mark.prove)])
def test_an_env_that_always_gives_nan_stops_the_run(bench: Bench, runtime: str) -> None:
    run = bench.train(*faulty(bench, "nan-always"), f"runtime={runtime}").wait()
    assert run.process.returncode == 1
    (line,) = run.errors.strip().splitlines()
    assert "rollouts failed and none came through" in line and "nan in reward" in line
    assert len(run.output.splitlines()) < 40
    assert run.summary["ledger"]["committed"] == 0


SCRIPT = """
import gymnasium as gym
from rollcall.deploy import train

if __name__ == "__main__":
    gym.register("Known-here-v0", lambda: gym.make("CartPole-v1"))
    train("cartpole-ppo", env="Known-here-v0", name="run", eval={"episodes": 0}, metrics={"enabled": False})
"""


def test_an_env_that_a_script_alone_registers_stops_the_run_at_once_and_says_where_it_belongs(bench: Bench) -> None:
    (bench.folder / "script.py").write_text(SCRIPT)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=bench.folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1
    assert "what a script alone defines or registers is not known to the other processes" in done.stderr
    assert "'Known-here-v0' is not registered" in done.stderr
    assert time.monotonic() - began < 120


@pytest.mark.long
def test_an_env_that_hangs_is_named_and_its_actor_replaced(bench: Bench) -> None:
    run = bench.train(*faulty(bench, "hang"), "actors.ticket_deadline_s=5", "actors.num=1").wait()
    assert run.process.returncode == 0, run.errors
    books = assert_books_balance(bench, run)
    assert books["dropped_by_reason"]["deadline"] == 1
    events = (run.directory / "events.jsonl").read_text()
    assert "gym-" in events and "has not returned within 5 s" in events
    assert "the cart stands still" in (run.directory / "logs" / "gym-0.log").read_text()
    traces = "".join(path.read_text() for path in (run.directory / "logs").glob("gym-*.trace"))
    assert "faulty.py" in traces  # where it hangs


@pytest.mark.long
def test_a_run_that_is_alive_is_not_resumed_and_two_signals_stop_it_at_once(bench: Bench) -> None:
    run = bench.train("total_learner_steps=100000", "runtime=serial")
    run.wait_for_step(1)
    second = bench.start("resume", "run").wait()
    assert second.process.returncode == 2
    assert "in use by another driver" in second.errors and len(second.errors.strip().splitlines()) == 1
    run.process.terminate()
    run.process.terminate()
    began = time.monotonic()
    run.wait()
    assert run.process.returncode == 130
    assert time.monotonic() - began < 20


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(bench: Bench) -> None:
    run = bench.train("total_learner_steps=12", "runtime=serial")
    run.wait_for_step(0)
    (run.directory / "summary.json.new").symlink_to("/dev/full")  # on which every write is refused as on a full disk
    run.wait()
    assert run.process.returncode == 1
    (line,) = run.errors.strip().splitlines()
    assert "No space left on device" in line and f"rollcall resume {run.directory.relative_to(bench.folder)}" in line
    (run.directory / "summary.json.new").unlink()
    resumed = bench.start("resume", "run").wait()
    assert resumed.process.returncode == 0, resumed.errors
    assert_books_balance(bench, resumed)
