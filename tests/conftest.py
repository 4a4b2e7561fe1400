"""Whole runs through the command line, as a user starts them: a process of its own in a directory of its own. And which
tests share a process of the suite."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.needs import refuse_unlisted_skip

# Small, and every part of it real: 4 shards of 2 envs, batches of 4 x 2 x 32 steps.
SMALL = (
    "env=CartPole-v1",
    "actors.num_envs=8",
    "actors.num_shards=4",
    "actors.unroll_length=32",
    "algorithm.num_minibatches=2",
    "algorithm.epochs=2",
    "eval.episodes=0",
    "metrics.enabled=false",
)

ENGINE_TESTS = "tests/actors/language/"

# A shell starts what it puts in the background with SIGINT ignored, and children inherit that: the runs that tests
# interrupt would never hear of it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return refuse_unlisted_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return refuse_unlisted_skip((yield))


@pytest.hookimpl(optionalhook=True)  # for pytest -p no:xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process takes whole files, as with `--dist loadfile`; those that share vLLM engines are one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope: str = super()._split_scope(nodeid)
            return ENGINE_TESTS if scope.startswith(ENGINE_TESTS) else scope

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@dataclass
class Run:
    """One `rollcall train` or `resume`, under way or done."""

    directory: Path
    process: subprocess.Popen[str]
    output: str = ""
    errors: str = ""
    children: list[psutil.Process] = field(default_factory=list)

    def wait(self, timeout_s: float = 240) -> Run:
        self.output, self.errors = self.process.communicate(timeout=timeout_s)
        return self

    @property
    def summary(self) -> dict[str, Any]:
        text: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return text

    def steps(self) -> list[dict[str, Any]]:
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def wait_for_step(self, step: int, timeout_s: float = 200) -> None:
        deadline = time.monotonic() + timeout_s
        while len(self.steps()) <= step:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, f"step {step} was not reached: {self.steps()[-1:]}"
            time.sleep(0.02)

    def find(self, title: str) -> psutil.Process:
        """A process of this run, by a part of its title."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if title in " ".join(child.cmdline()):
                    return child
            except psutil.NoSuchProcess:
                continue
        raise AssertionError(f"no process called {title}")

    def kill(self, title: str) -> None:
        self.find(title).send_signal(signal.SIGKILL)


@dataclass
class Bench:
    """A working directory, and the command line in it."""

    folder: Path
    started: list[Run] = field(default_factory=list)

    def start(self, *arguments: str, name: str = "run") -> Run:
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "rollcall.deploy.cli", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        run = Run(self.folder / "runs" / name, process)
        self.started.append(run)
        return run

    def train(self, *overrides: str, name: str = "run", recipe: str = "cartpole-ppo") -> Run:
        return self.start("train", recipe, *SMALL, *overrides, f"name={name}", name=name)

    def audit(self, name: str = "run") -> tuple[int, str]:
        run = self.start("audit", name, name=name).wait()
        return run.process.returncode, run.output + run.errors


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for run in bench.started:
        if run.process.poll() is None:
            for child in [*psutil.Process(run.process.pid).children(recursive=True), run.process]:
                child.kill()
        run.process.communicate()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], float], None]:
    def wait(condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            time.sleep(0.1)

    return wait
