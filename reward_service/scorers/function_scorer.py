"""A user's own scorer: a function by import path, called in killable workers with a deadline. It is the operator's code
and is not sandboxed; how it is called is user_function.py's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import JsonValue

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome
from rollcall.reward_service.scorers.function_config import FunctionConfig
from rollcall.reward_service.scorers.text_scorers import Said, outcome_of, said, text_cost, version_of
from rollcall.reward_service.scorers.user_function import Misfit, UserFunction, user_function
from rollcall.reward_service.workers.pool import Done, WorkerPool


class FunctionScorer:
    def __init__(self, config: FunctionConfig, pool: WorkerPool, function: UserFunction) -> None:
        self.takes = function.takes.intersection(config.takes)
        self.version = version_of(config, _source_of(function))
        self.cacheable = config.cacheable
        self._config = config
        self._pool = pool
        self._batch_size = config.batch_size if function.batched else 1

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
      BadInput: when there is no such function, or it takes what no reward function is given.
    """
    function = user_function(config.path)
    pool = WorkerPool(f"{__name__}:make_worker", config.path, config.workers, trusted=True)
    try:
        pool.check()
    except BadInput:
        pool.close()
        raise
    return FunctionScorer(config, pool, function)


def _source_of(function: UserFunction) -> bytes:
    try:
        return Path(inspect.getsourcefile(function.function) or "").read_bytes()
    except (TypeError, OSError):
        return function.path.encode()


def make_worker(path: str) -> Callable[[list[JsonValue]], list[Said]]:
    function = user_function(path)

    def work(raw: list[JsonValue]) -> list[Said]:
        items = [ScoreItem.model_validate(values) for values in raw]
        try:
            outcomes = function.scores(items)
        except Misfit as misfit:
            if len(items) > 1:  # each is tried alone
                raise
            outcomes = [Failure("scorer_failed", str(misfit))] * len(items)
        return [said(outcome) for outcome in outcomes]

    return work
