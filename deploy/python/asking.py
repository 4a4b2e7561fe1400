"""A run's checkpoint evaluated from a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rollcall.deploy.kinds.kind import EvalOptions
from rollcall.deploy.kinds.loading import evaluate as evaluate_run
from rollcall.deploy.python.result import Result


def evaluate(
    run: str | Path | Result,
    *,
    episodes: int | None = None,
    seed: int | None = None,
    stochastic: bool = False,
    video: str | Path | None = None,
    record: str | None = None,
) -> dict[str, Any]:
    """Evaluates a run's newest checkpoint, or a given one, as `rollcall eval` does: on fixed seeds, greedy unless
    `stochastic`. `episodes`: episodes, or held-out rows; `video`: a .gif of one episode; `record`: a file that the
    episodes are written to. Returns at least `mean`, `std`, `n` and `checkpoint`. The same call gives the same result.

    Raises:
      BadInput, CheckpointDamaged: as `rollcall eval` would.
      ValueError: for a number that is too small.
    """
    if episodes is not None and episodes < 1:
        raise ValueError(f"episodes is {episodes}: must be 1 or more")
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {seed}: must be 0 or more")
    target = run.run_directory if isinstance(run, Result) else run
    film = None if video is None else Path(video)
    options = EvalOptions(episodes=episodes, seed=seed, stochastic=stochastic, video=film, record=record)
    return evaluate_run(target, options)[1]
