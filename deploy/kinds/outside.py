"""What a run gives to actors outside Ray: which of its env shards, what their trajectories must be like, and what an
actor is told of the run when it joins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gymnasium import spaces
from pydantic import JsonValue

from rollcall.actors.outside.settings import OutsideConfig
from rollcall.actors.policy import Policy
from rollcall.learners.models.policy_config import PolicyConfig


@dataclass(frozen=True)
class OutsideShards:
    """Of one run."""

    config: OutsideConfig
    first_shard: int  # from this one on they are outside actors'
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    policy_config: PolicyConfig
    policy: Policy  # one of the run's, with any weights
    masks_actions: bool  # whether its envs do
    unroll_length: int
    num_envs: int  # of a shard
    reward_clip: float | None
    told: Mapping[str, JsonValue]
