"""How well a candidate's policy does the task: by the env's own return, or by a function of the user's, which runs in a
process of its own and has a deadline."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from rollcall.cluster.files import read_json
from rollcall.cluster.inputs.import_path import import_object
from rollcall.reward_service.workers.pool import Done, WorkerPool
from rollcall.reward_service.workers.workers_config import WorkersConfig

TIMEOUT_S = 600.0
_MEMORY_BYTES = 1 << 40  # of address space: torch maps what it never uses


class NoFitness(Exception):
    """Why there is none, in one line."""


class Fitness:
    """`function`: module:function of a run directory; None: the mean return of the run's final evaluation."""

    def __init__(self, function: str | None) -> None:
        """Raises BadInput: there is no such function."""
        self._pool: WorkerPool | None = None
        if function is not None:
            config = WorkersConfig(num=1, timeout_s=TIMEOUT_S, memory_bytes=_MEMORY_BYTES)
            self._pool = WorkerPool(f"{__name__}:make_worker", function, config, trusted=True)
            self._pool.check()

    def of(self, run: Path) -> float:
        """Raises NoFitness: it cannot be said, or is no finite number."""
        if self._pool is None:
            found = (read_json(run / "summary.json").get("final_eval") or {}).get("mean")
        else:
            (said,) = self._pool.map([str(run)])
            if not isinstance(said, Done):
                raise NoFitness(f"design.fitness: {said.message.partition(chr(10))[0]}")
            found = said.value
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise NoFitness(f"its fitness is {found!r}, and no finite number")
        return float(found)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def make_worker(function: str) -> Callable[[str], JsonValue]:
    """Of the pool."""
    measure = import_object(function)

    def work(run: str) -> JsonValue:
        found = measure(Path(run))
        return found.item() if hasattr(found, "item") else found  # type: ignore[no-any-return]

    return work
