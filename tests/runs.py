"""Whole runs through the command line, as a user starts them: a process of its own in a directory of its own. And the
recipe of the smallest run of all, for tests that train within their own process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rollcall.deploy.cli import main
from rollcall.deploy.config.settings import Settings
from rollcall.deploy.kinds.recipes import load_config

# Small, and every part of it real: 4 shards of 2 envs, batches of 4 x 2 x 32 steps.
SMALL = (
    "runtime=ray",
    "env=CartPole-v1",
    "actors.num_envs=8",
    "actors.num_shards=4",
    "actors.unroll_length=32",
    "algorithm.num_minibatches=2",
    "algorithm.epochs=2",
    "eval.episodes=0",
    "metrics.enabled=false",
)

# What `rollcall bench ... --json` says at least.
BENCH_KEYS = {"bound", "achieved", "ratio_to_bound", "peer", "ratio_to_peer", "unit", "limiter", "settings"}

TWO_STEPS = """\
total_learner_steps: 2
runtime: serial
env: CartPole-v1
algorithm: {name: ppo, epochs: 1, num_minibatches: 2}
actors: {num_envs: 2, num_shards: 2, unroll_length: 8}
policy: {hidden_sizes: [8], normalise_observations: true, normalise_rewards: true}
learner: {learning_rate: 1e-3, compile: "off"}
checkpoint: {every_steps: 1, keep: 10}
eval: {episodes: 1}
metrics: {enabled: false}
"""


def config_of(
    recipe: str | Path | Settings, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> Any:
    """As load_config; of which class it is, the test knows."""
    return load_config(recipe, overrides, values)


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

    def find(self, title: str, within_s: float = 60.0) -> psutil.Process:
        """A process of this run, by a part of its title, which Ray gives it when it has begun."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None and time.monotonic() < deadline:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if title in " ".join(child.cmdline()):
                        return child
            time.sleep(0.05)
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
            process_group=0,  # as a shell, `timeout` or a batch system does it
        )
        run = Run(self.folder / "runs" / name, process)
        self.started.append(run)
        return run

    def train(self, *overrides: str, name: str = "run", recipe: str = "cartpole-ppo") -> Run:
        return self.start("train", recipe, *SMALL, *overrides, f"name={name}", name=name)

    def close(self) -> None:
        """Whatever still runs is ended."""
        for run in self.started:
            if run.process.poll() is None:
                for child in [*psutil.Process(run.process.pid).children(recursive=True), run.process]:
                    child.kill()
            run.process.communicate()

    def audit(self, name: str = "run") -> tuple[int, str]:
        run = self.start("audit", name, name=name).wait()
        return run.process.returncode, run.output + run.errors


@contextmanager
def trained(folder: Path, name: str) -> Iterator[Path]:
    """In this folder, a run of two steps by its small.yaml; it is the working directory meanwhile."""
    (folder / "small.yaml").write_text(TWO_STEPS)
    with chdir(folder):
        assert main.main(["train", "small.yaml", f"name={name}"]) == 0
        yield folder
