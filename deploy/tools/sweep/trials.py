"""One trial of a sweep: a configuration's runs, one for each seed, each a `rollcall train` in a process of its own.
What it reports is read from its run directory, so it can be watched, given up and gone on with like any run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollcall.cluster.files import read_json
from rollcall.deploy.drive.child_process import child_command
from rollcall.deploy.report.run_lines import last_record
from rollcall.deploy.rundir.jobs import RUNS_VARIABLE
from rollcall.deploy.tools.sweep.proposing import Proposal

LOOK_S = 1.0
# Exit codes of a run that was told to stop: with a checkpoint, or before it was far enough to listen.
STOPPED = (130, -signal.SIGTERM)
STOP_TIMEOUT_S = 120.0  # for a checkpoint, before a trial that is given up is killed
MILESTONES = 10  # of a run, at which its training is held against others'

Hopeless = Callable[[float, int], bool]  # (what training reports, milestone)


@dataclass(frozen=True)
class Outcome:
    """Of a trial. `score`: the mean over its seeds; None: it failed, was given up or was cut off."""

    proposal: Proposal
    score: float | None
    scores: Sequence[float]
    runs: Sequence[Path]
    pruned: bool = False
    stopped: bool = False
    error: str = ""


@dataclass(frozen=True)
class Trials:
    """How trials are run."""

    recipe: str
    overrides: Sequence[str]
    seeds: Sequence[int]
    folder: Path  # of their run directories
    stop: threading.Event

    def carry_out(self, proposal: Proposal, hopeless: Hopeless) -> Outcome:
        """All seeds, one after another; a trial that is given up at its first seed has no others."""
        scores: list[float] = []
        runs: list[Path] = []
        for seed in self.seeds:
            run = self.folder / f"{proposal.number:03}-s{seed}"
            runs.append(run)
            ending = self._train(proposal, run, seed, hopeless if seed == self.seeds[0] else _never)
            if ending:
                kinds = {"pruned": ending == "pruned", "stopped": ending == "stopped"}
                error = "" if any(kinds.values()) else ending
                return Outcome(proposal, None, scores, runs, error=error, **kinds)
            score = score_of(run)
            if score is None:
                return Outcome(proposal, None, scores, runs, error="it has no evaluation: set eval.episodes above 0")
            scores.append(score)
        return Outcome(proposal, sum(scores) / len(scores), scores, runs)

    def _train(self, proposal: Proposal, run: Path, seed: int, hopeless: Hopeless) -> str:
        """Nothing, once it is completed; else how it ended: pruned, stopped, or what it said."""
        if read_json(run / "summary.json").get("status") == "completed":
            return ""
        settings = [f"{key}={json.dumps(value)}" for key, value in proposal.settings.items()]
        settings = [*self.overrides, *settings, f"seed={seed}", f"name={run.name}"]
        command = child_command("train", self.recipe, *settings, "--resume", "-q")
        with self._started(command, run) as (process, errors):
            milestone = 0
            while process.poll() is None:
                if self.stop.wait(LOOK_S):
                    _end(process)
                    return "stopped"
                reached = _milestone(run)
                if reached > milestone:
                    milestone = reached
                    value = _training_value(run)
                    if value is not None and milestone < MILESTONES and hopeless(value, milestone):
                        _end(process)
                        return "pruned"
            if self.stop.is_set():
                return "stopped"
            if process.returncode == 0:
                return ""
            lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
            return lines[-1].removeprefix("rollcall: error: ") if lines else f"exit code {process.returncode}"

    @contextmanager
    def _started(self, command: Sequence[str], run: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """In a process group of its own: Ctrl-C is the sweep's to pass on. Whatever happens, it does not outlive us."""
        errors = self.folder / f"{run.name}.errors"
        environment = os.environ | {RUNS_VARIABLE: str(self.folder)}
        with errors.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=file, env=environment, process_group=0
            )
            try:
                yield process, errors
            finally:
                if process.poll() is None:
                    _end(process)
        if process.returncode in (0, *STOPPED):
            errors.unlink()


def score_of(run: Path) -> float | None:
    final = read_json(run / "summary.json").get("final_eval")
    mean = final.get("mean") if isinstance(final, Mapping) else None
    return float(mean) if isinstance(mean, int | float) else None


def _never(value: float, milestone: int) -> bool:
    return False


def _milestone(run: Path) -> int:
    """How many tenths of the run are done."""
    last = last_record(run / "metrics.jsonl")
    total = _totals(run)
    if last is None or total is None:
        return 0
    key, whole = total
    done = last["step"] + 1 if key == "step" else last.get(key) or 0
    return int(MILESTONES * done / whole)


def _totals(run: Path) -> tuple[str, int] | None:
    text = (run / "config.yaml").read_text() if (run / "config.yaml").is_file() else ""
    for name, key in (("total_env_steps", "env_steps"), ("total_learner_steps", "step")):
        for line in text.splitlines():
            if line.startswith(f"{name}: ") and line.split()[-1].isdigit():
                return key, int(line.split()[-1])
    return None


def _training_value(run: Path) -> float | None:
    last: Mapping[str, Any] = last_record(run / "metrics.jsonl") or {}
    value = last.get("return_mean", last.get("reward_mean"))
    return float(value) if isinstance(value, int | float) else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """With a checkpoint, in time; else at once, with all that it started."""
    process.send_signal(signal.SIGTERM)
    until = time.monotonic() + STOP_TIMEOUT_S
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_TIMEOUT_S)
