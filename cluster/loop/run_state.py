"""Where a run stands at one moment, for whoever watches it. A record; must never decide anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunState:
    """Read by another thread than the one that moves it: each number is true, their sum may be off by one event."""

    progress: float  # 0 to 1
    tickets_per_step: int
    max_policy_lag: int
    acting: int  # tickets with the actors
    scoring: int  # with the reward service
    queued: int  # finished, waiting for a batch
    training: int  # in batches that the learner has
    checkpoint_step: int = -1  # of the newest checkpoint; -1: there is none yet
    checkpoint_unix_s: float = 0.0
    restarts: Mapping[str, int] = field(default_factory=dict)  # processes started again, by role
