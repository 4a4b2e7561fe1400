"""A user's own scorer: a function by import path, called in killable workers with a deadline. It is the operator's code
and is not sandboxed. Must never know what it computes.

The function takes a ScoreItem and returns a number, {"score": ..., "components": {...}}, or None where it has no score;
of a segment, one number for each step. With an attribute `batched = True` it takes a list of items and returns a list
of those."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from rollcall.cluster.errors import BadInput
from rollcall.cluster.import_path import import_object
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome, Score, Taken, finite
from rollcall.reward_service.text_scorers import outcome_of, text_cost, version_of
from rollcall.reward_service.workers import Done, WorkerPool, WorkersConfig


class FunctionConfig(BaseModel):
    """A scorer by import path, found from the working directory as from anywhere else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["function"] = "function"
    path: str = Field(pattern=r"^[\w.]+:\w+$", description="my_module:score")
    # No set: its order would differ from process to process, and with it the digest that is the version.
    takes: tuple[Taken, ...] = Field(default=("text", "segment"), min_length=1, description="what it scores")
    cacheable: bool = Field(default=True, description="an item has the same score tomorrow")
    batch_size: int = Field(default=32, ge=1, description="items of one call, where the function is batched")
    workers: WorkersConfig = WorkersConfig()


class FunctionScorer:
    def __init__(self, config: FunctionConfig, pool: WorkerPool, *, source: bytes, batched: bool) -> None:
        self.takes = frozenset(config.takes)
        self.version = version_of(config, source)
        self.cacheable = config.cacheable
        self._config = config
        self._pool = pool
        self._batch_size = config.batch_size if batched else 1

    def cost(self, item: ScoreItem) -> int:
        return item.segment.num_steps if item.segment is not None else text_cost(item)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        """Items whose batch failed are tried again one by one: one bad item does not fail its neighbours."""
        outcomes: list[Outcome | None] = [None] * len(items)
        taken = [n for n, item in enumerate(items) if ("segment" if item.segment else "text") in self.takes]
        size = self._batch_size
        for places, result in self._run(items, [taken[at : at + size] for at in range(0, len(taken), size)]):
            if isinstance(result, Done):
                for place, value in zip(places, result.value, strict=True):
                    outcomes[place] = outcome_of(Done(value))
            elif len(places) == 1:
                outcomes[places[0]] = result
        again = [[place] for place in taken if outcomes[place] is None]
        for (place,), result in self._run(items, again):
            outcomes[place] = outcome_of(Done(result.value[0])) if isinstance(result, Done) else result
        untaken = Failure("unsupported", f"this scorer takes {' and '.join(sorted(self.takes))} only")
        return [outcome if outcome is not None else untaken for outcome in outcomes]

    def close(self) -> None:
        self._pool.close()

    def _run(self, items: Sequence[ScoreItem], groups: list[list[int]]) -> list[tuple[list[int], Done | Failure]]:
        jobs: list[JsonValue] = [[items[place].model_dump(mode="json") for place in group] for group in groups]
        timeouts_s = [self._config.workers.timeout_s * len(group) for group in groups]
        return list(zip(groups, self._pool.map(jobs, timeouts_s=timeouts_s), strict=True))


def build_function_scorer(config: FunctionConfig) -> FunctionScorer:
    """Imports the function here for its source, and in a worker, where it will be called.

    Raises:
      BadInput: when there is no such function.
    """
    function = import_object(config.path)
    if not callable(function):
        raise BadInput(f"{config.path} is a {type(function).__name__}, not a function: name one that takes an item")
    try:
        source = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (TypeError, OSError):
        source = config.path.encode()
    pool = WorkerPool("rollcall.reward_service.function_scorer:make_worker", config.path, config.workers, trusted=True)
    try:
        pool.check()
    except BadInput:
        pool.close()
        raise
    return FunctionScorer(config, pool, source=source, batched=bool(getattr(function, "batched", False)))


def make_worker(path: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    function = import_object(path)
    batched = bool(getattr(function, "batched", False))

    def work(raw: list[dict[str, Any]]) -> list[dict[str, Any]]:
        items = [ScoreItem.model_validate(values) for values in raw]
        said = list(function(items)) if batched else [function(item) for item in items]
        if len(said) != len(items):
            raise ValueError(f"{path} gave {len(said)} scores for {len(items)} items")
        return [_outcome(value) for value in said]

    return work


def _outcome(said: Any) -> dict[str, Any]:
    """What the function said, as `outcome_of` reads it. JSON has no NaN, so that is found here."""
    if said is None:
        return {"kind": "scorer_failed", "message": "the function gave no score"}
    components: dict[str, Any] = {}
    if isinstance(said, dict):
        components, said = dict(said.get("components", {})), said["score"]
    steps = None if np.ndim(said) == 0 else tuple(np.asarray(said, np.float64).tolist())
    value = float(said) if steps is None else math.fsum(steps)
    outcome = finite(Score(value, {str(name): float(part) for name, part in components.items()}, steps))
    if isinstance(outcome, Failure):
        return {"kind": outcome.kind, "message": outcome.message}
    return {"value": outcome.value, "components": dict(outcome.components), "step_values": steps}
