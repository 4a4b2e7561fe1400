"""When a control run is done sooner in processes side by side than in one in which acting and learning take turns."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Ray and its processes take 5 to 10 s to begin on two cores, and save at most half of what one process needs. Up to
# here that is less, with envs of up to a millisecond a step and small networks.
ENV_STEPS = 25_000
MINIBATCHES = 4_000
CLUSTER = "RAY_ADDRESS"  # the environment variable that says where there is a cluster


def reason_for_processes(
    *, env_steps: int | None, minibatches: int | None, asked_for: Mapping[str, bool], slow: Mapping[str, bool]
) -> str:
    """Why they are, in a few words; empty: one process is done sooner. `env_steps`, `minibatches`: of the whole run,
    None where nobody knows. `asked_for`: settings that ask for processes; `slow`: what takes long at each step."""
    setting = next((name for name, is_so in asked_for.items() if is_so), None)
    if setting is not None:
        return f"{setting} asks for processes"
    if os.environ.get(CLUSTER):
        return f"{CLUSTER} is set"
    if (what := next((name for name, is_so in slow.items() if is_so), None)) is not None:
        return f"{what}: each step takes long"
    if env_steps is None:
        return "nobody knows how long the run will be"
    if env_steps > ENV_STEPS:
        return f"{env_steps:,} env steps: acting and learning go on side by side"
    if minibatches is not None and minibatches > MINIBATCHES:
        return f"{minibatches:,} minibatches: acting and learning go on side by side"
    return ""
