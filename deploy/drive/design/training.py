"""Candidates' runs, several at once: each is `rollcall train` in a process and a run directory of its own, and goes on
where an earlier search left it. Knows processes; must never know what a candidate is good for."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rollcall.cluster.cores import usable_cores
from rollcall.cluster.files import read_json, write_aside
from rollcall.deploy.drive.child_process import child_command
from rollcall.deploy.report.progress import one_line
from rollcall.deploy.rundir.candidates import CANDIDATES, run_of
from rollcall.deploy.rundir.jobs import RUNS_VARIABLE

LOOK_S = 0.1
STOP_S = 60.0  # for a run to write its checkpoint
MOST_STARTS = 4  # of one run that is killed from outside, or whose directory somebody else still holds
_PAUSE_S = 2.0
_COMPLAINT = "rollcall: error: "


@dataclass
class _Training:
    name: str
    process: subprocess.Popen[bytes]
    deadline: float


class Trainings:
    """The runs of one search. Used by its driver's thread, with which they end."""

    def __init__(
        self,
        directory: Path,
        *,
        at_once: int,
        timeout_s: float,
        without: Sequence[str],
        stop_requested: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        """`without`: environment variables that the runs do not get."""
        self._directory, self._at_once, self._timeout_s = directory, at_once, timeout_s
        self._stop_requested, self._tell = stop_requested, tell
        (directory / CANDIDATES).mkdir(exist_ok=True)
        threads = str(max(1, usable_cores() // at_once))
        self._environment = {
            "OMP_NUM_THREADS": threads,
            **{name: value for name, value in os.environ.items() if name not in without},
            RUNS_VARIABLE: str((directory / CANDIDATES).resolve()),
        }
        self._starts: dict[str, int] = {}

    def carry_out(self, recipes: Mapping[str, str], ended: Callable[[str, str | None], None]) -> None:
        """Trains by recipes, as YAML by name, until all have ended or a stop is requested: then each run has its
        checkpoint. `ended`: told of each, as soon as it has, and in one line why it is of no use; None: it is done."""
        waiting = deque(recipes.items())
        with self._ended_whatever_happens() as running:
            while (waiting or running) and not self._stop_requested():
                while waiting and len(running) < self._at_once:
                    running.append(self._start(*waiting.popleft()))
                for training in list(running):
                    if training.process.poll() is None and time.monotonic() < training.deadline:
                        continue
                    running.remove(training)
                    problem = self._problem(training)
                    if problem is _AGAIN:
                        waiting.append((training.name, recipes[training.name]))
                    else:
                        ended(training.name, problem)
                time.sleep(LOOK_S)

    @contextmanager
    def _ended_whatever_happens(self) -> Iterator[list[_Training]]:
        running: list[_Training] = []
        try:
            yield running
        finally:
            for training in running:
                training.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            for training in running:
                _end(training.process, deadline)

    def _start(self, name: str, recipe: str) -> _Training:
        self._starts[name] = self._starts.get(name, 0) + 1
        path = self._directory / CANDIDATES / f"{name}.yaml"
        if not path.exists():
            write_aside(path, recipe)
        command = ["train", str(path), f"name={name}", "--resume"]
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                child_command(*command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                process_group=0,  # a Ctrl-C is for the search, which ends its runs one by one
            )
        return _Training(name, process, time.monotonic() + self._timeout_s)

    def _problem(self, training: _Training) -> str | None:
        """Why the run that has ended, or should have, is of no use; _AGAIN: it is to go on."""
        name, process = training.name, training.process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            _end(process, time.monotonic() + STOP_S)
            return f"its training took longer than {self._timeout_s:g} s (design.train_timeout_s)"
        summary = read_json(run_of(self._directory, name) / "summary.json")
        if process.returncode == 0 and summary.get("status") == "completed":
            return None
        said = self._complaint(name)
        if (process.returncode < 0 or "in use by another driver" in said) and self._starts[name] < MOST_STARTS:
            self._tell(f"candidate {name}: {said or f'its run was ended by signal {-process.returncode}'}; it goes on")
            time.sleep(_PAUSE_S)
            return _AGAIN
        return one_line(summary.get("error") or said or f"its run ended with {process.returncode}")

    def _complaint(self, name: str) -> str:
        """The last that the run said of an error."""
        lines = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.removeprefix(_COMPLAINT) for line in reversed(lines) if line.startswith(_COMPLAINT)), "")

    def _log(self, name: str) -> Path:
        return self._directory / CANDIDATES / f"{name}.log"


_AGAIN = "again"


def _end(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
