"""Runs inside a run: what a drive is given to have them made, by the lifecycle that it is a part of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rollcall.deploy.kinds.kind import Driven
from rollcall.deploy.report.recorders import Record


@dataclass(frozen=True)
class NestedRuns:
    """`prepare` makes what the run loads; `train_reward_model` is for who does so while the policy learns."""

    prepare: Callable[[Driven, Callable[[], bool]], None]
    train_reward_model: Callable[..., Path | None]  # a TrainRewardModel that may be asked to stop


class StepsTold:
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
