"""What the loop is told of a run, and where it says that the run stands. Plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rollcall.cluster.loop.flow import OnStale


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run, as far as the loop that drives it needs to know."""

    run_id: str
    run_seed: int
    policy_id: str
    config_hash: str
    tickets_per_step: int
    max_policy_lag: int
    on_stale: OnStale
    total_learner_steps: int | None  # None: the run ends by env steps (unit "episode")
    total_env_steps: int | None
    ticket_deadline_s: float
    checkpoint_every_steps: int
    eval_every_steps: int | None
    prefetch_steps: int  # batches that may wait at the learner while it is busy
    consumption_log: Path  # the learner's, read for the newest epoch in it
    exact_checkpoints: bool  # env state can be captured, and was seen to restore exactly
    scored: bool = False  # a reward service scores what was produced before anybody learns from it
    stop_patience_s: float = math.inf  # how long a stop waits for the learner to come back to a step boundary
    drop_degenerate: bool = False  # groups of samples whose rewards are all equal teach nothing: others in their place

    def is_finished(self, step: int, env_steps: int) -> bool:
        if self.total_learner_steps is not None:
            return step >= self.total_learner_steps
        return env_steps >= (self.total_env_steps or 0)

    def progress(self, step: int, env_steps: int) -> float:
        """0 to 1."""
        if self.total_learner_steps is not None:
            return step / self.total_learner_steps
        return min(1.0, env_steps / (self.total_env_steps or 1))


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands at one moment, for whoever watches it. Read by another thread than the one that moves it: each
    number is true, their sum may be off by one event."""

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
