"""What a run is, as far as the loop that drives it needs to know. Plain values, from the config; must never decide
anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rollcall.cluster.loop.flow import OnStale


@dataclass(frozen=True, slots=True)
class Plan:
    """One run's."""

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
