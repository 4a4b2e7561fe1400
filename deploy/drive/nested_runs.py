"""Runs that another run carries out in a directory of its own: a reward model while the policy learns."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from rollcall.deploy.config.preference_config import RewardTrainConfig
from rollcall.deploy.drive.runs import begin_run, read_json
from rollcall.deploy.kinds import reward_train
from rollcall.deploy.report.recorders import Record


def train_reward_model(
    config: RewardTrainConfig,
    directory: Path,
    *,
    on_step: Callable[[], None],
    stop: threading.Event | None = None,
) -> Path | None:
    """A kinds.preference_trainer.TrainRewardModel. A run that was cut off begins anew: it is short."""
    summary = read_json(directory / "summary.json")
    if summary.get("status") != "completed":
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        begin_run(config, directory, recipe=config.name)
        summary = reward_train.carry_out(config, directory, stop=stop, console=[_Steps(on_step)])
    return directory / reward_train.MODEL if summary["status"] == "completed" else None


class _Steps:
    """A recorder that says only that something was done."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def on_start(self, info: Record) -> None: ...

    def on_step(self, record: Record) -> None:
        self._tell()

    def on_eval(self, record: Record) -> None:
        self._tell()

    def on_event(self, kind: str, text: str) -> None: ...
    def close(self, summary: Record) -> None: ...
