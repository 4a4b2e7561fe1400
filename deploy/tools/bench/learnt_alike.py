"""`rollcall bench gym --learn STEPS`: whether we and the peers learn the same from as many env steps, with the same
settings. A speed says nothing without it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.tools.bench.peer_work import Rival
from rollcall.deploy.tools.bench.result import say, whole_run

LEARN_TIMEOUT_S = 6 * 3600.0  # of one peer's training
OURS = "rollcall"


def compare(config: RunConfig, against: Sequence[Rival], repeats: int, scratch: Path) -> dict[str, Any]:
    """Trains each once per repeat, with the seeds 0, 1, ..., and takes the mean return of its last 100 episodes."""
    steps = config.total_env_steps
    assert steps is not None
    returns: dict[str, list[float]] = {name: [] for name in (OURS, *(rival.peer.name for rival in against))}
    seconds: dict[str, list[float]] = {name: [] for name in returns}
    for seed in range(repeats):
        began = time.perf_counter()
        records = whole_run(config.model_copy(update={"seed": seed}), scratch / "run")
        seconds[OURS].append(time.perf_counter() - began)
        told = [record["return_mean"] for record in records if record.get("return_mean") is not None]
        if not told:
            raise BadInput(f"--learn {steps}: no episode ended within so many env steps: give more")
        returns[OURS].append(told[-1])
        for rival in against:
            began = time.perf_counter()
            work = rival.work | {"seed": seed, "seconds": None, "learn_steps": steps}
            found = rival.peer.measure(work, timeout_s=LEARN_TIMEOUT_S).returns
            seconds[rival.peer.name].append(time.perf_counter() - began)
            if not found:
                raise BadInput(f"--learn {steps}: no episode of {rival.peer.name} ended within so many: give more")
            returns[rival.peer.name].append(statistics.mean(found))
        say(f"seed {seed}: " + ", ".join(f"{name} {found[-1]:.1f}" for name, found in returns.items()))
    return {
        "unit": "return",
        "learn_steps": steps,
        "returns": {name: [round(item, 2) for item in found] for name, found in returns.items()},
        "seconds": {name: [round(item, 1) for item in found] for name, found in seconds.items()},
        "settings": {"recipe": config.name, "repeats": repeats},
    }


def table(result: Mapping[str, Any]) -> list[str]:
    lines = [f"after {result['learn_steps']:,} env steps, mean return of the last 100 episodes (rejax: 128 new ones):"]
    for name, found in result["returns"].items():
        each = ", ".join(f"{item:.1f}" for item in found)
        lines.append(
            f"{name:<11} {statistics.mean(found):8.1f} (seeds 0 to {len(found) - 1}: {each}); "
            f"{statistics.median(result['seconds'][name]):.0f} s with its start"
        )
    return lines
