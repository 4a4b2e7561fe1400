"""What a run's directory says of the run, whoever made it and however it ended. Reads the few lines that it needs: a
folder of hundreds of runs is looked through within a second or two."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import read_json
from rollcall.cluster.store.run_lock import driver_alive
from rollcall.deploy.config.settings import parse_yaml
from rollcall.deploy.report.counted import TOKENS, Counted, counted_in
from rollcall.deploy.report.run_lines import last_record

SHARES = ("exact match", "pairs right", "broken")  # units of evaluations whose mean is a share, 0 to 1
FINISHED = ("completed", "stopped", "failed")


@dataclass(frozen=True)
class RunReading:
    """One run as its directory has it. `config` is config.yaml as a tree, empty where it cannot be read."""

    directory: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    origin: Mapping[str, Any]  # run.json
    last: Mapping[str, Any]  # the newest line of metrics.jsonl
    evaluation: Mapping[str, Any]  # the final one, or the newest
    alive: bool
    resumable: bool

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def recipe(self) -> str:
        return str(self.summary.get("recipe") or self.origin.get("recipe") or "?")

    @property
    def method(self) -> str:
        """`ppo on CartPole-v1`."""
        algorithm = self.summary.get("algorithm") or named(self.config.get("algorithm"), "name") or "?"
        place = named(self.config.get("task"), "name") or named(self.config.get("env"), "id")
        return f"{algorithm} on {place}" if place else str(algorithm)

    @property
    def seed(self) -> Any:
        return self.summary.get("seed", self.config.get("seed"))

    @property
    def status(self) -> str:
        """completed, stopped, failed; running; cut off: its driver is gone without a word, as after `kill -9`."""
        if self.alive:
            return "running" if self.last else "starting"
        status = self.summary.get("status")
        return str(status) if status in FINISHED else "cut off"

    @property
    def counts(self) -> Counted:
        return counted_in([record for record in (self.last, self.evaluation) if record])

    @property
    def learner_steps(self) -> int | None:
        known = self.summary.get("learner_steps")
        return int(known) if known is not None else (int(self.last["step"]) + 1 if "step" in self.last else None)

    @property
    def experience(self) -> int | None:
        """Env steps or tokens learnt from."""
        known = self.summary.get(self.counts.total, self.last.get(self.counts.key))
        return None if known is None else int(known)

    @property
    def score(self) -> float | None:
        """The mean of the evaluation; without one what training made last: a return, or a reward."""
        return number_or_none(self.evaluation.get("mean")) if self.evaluation else self.training_score

    @property
    def training_score(self) -> float | None:
        key = "reward_mean" if self.counts is TOKENS else "return_mean"
        return number_or_none(self.last.get(key))

    @property
    def score_of(self) -> str | None:
        """What the score is of: evaluation, or training where nothing was evaluated."""
        if self.score is None:
            return None
        return "evaluation" if self.evaluation else "training"

    @property
    def is_share(self) -> bool:
        return self.evaluation.get("unit") in SHARES

    @property
    def began_unix_s(self) -> float | None:
        return number_or_none(self.origin.get("began_unix_s"))

    @property
    def age_s(self) -> float | None:
        began = self.began_unix_s
        return None if began is None else max(0.0, time.time() - began)

    @property
    def machine(self) -> str:
        """Its name, where the run knows it, and its cores."""
        machine = self.origin.get("machine") or {}
        cores = f"{machine['cpu_cores']} cores" if machine.get("cpu_cores") else ""
        return ", ".join(part for part in (str(machine.get("host") or ""), cores) if part) or "?"


def read_run_directory(directory: Path) -> RunReading:
    """Raises BadInput: where config.yaml cannot be read."""
    path = directory / "config.yaml"
    try:
        config = parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path)).tree
    except OSError as error:
        raise BadInput(f"{directory}: no run here ({path.name}: {error.strerror or error})") from None
    summary = read_json(directory / "summary.json")
    final = summary.get("final_eval")
    evaluation = final if isinstance(final, Mapping) else last_record(directory / "evals.jsonl")
    return RunReading(
        directory=directory,
        config=config,
        summary=summary,
        origin=read_json(directory / "run.json"),
        last=last_record(directory / "metrics.jsonl") or {},
        evaluation=evaluation or {},
        alive=driver_alive(directory),
        resumable=any(directory.glob("checkpoints/step-*/manifest.json")),
    )


def runs_below(root: Path) -> Iterator[Path]:
    """The run directories right below a folder."""
    yield from sorted(path.parent for path in root.glob("*/config.yaml"))


def named(section: Any, key: str) -> str:
    """What a section is called that may be written as its name alone."""
    if isinstance(section, Mapping):
        section = section.get(key)
    return "" if section is None else str(section)


def number_or_none(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(float(value)) < float("inf") else None
