"""What a run with actors has to say of itself for summary.json, however it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.errors import RollcallError
from rollcall.cluster.loop.coordinator import Coordinator
from rollcall.deploy.report.counted import Counted


def facts_of(
    coordinator: Coordinator,
    books: Ledger,
    workers: Any,
    evaluations: Sequence[Mapping[str, Any]],
    counts: Counted,
) -> dict[str, Any]:
    """`evaluations`: of the policy before its first update, and the newest, as far as there are any."""
    counters = coordinator.counters
    try:
        ledger = books.counts().model_dump(exclude={"skipped_steps"})
    except RollcallError:  # whoever asks why finds it in the summary's `error`
        ledger = None
    lag_mean = counters.lag_sum / counters.lag_count if counters.lag_count else 0.0
    first = next((found for found in evaluations if found["step"] == 0), None)
    last = evaluations[-1] if evaluations and coordinator.finished else None
    if last is not None and last["step"] != coordinator.step:  # the final one failed
        last = None
    return {
        "train_s": counters.train_s,
        "learner_steps": coordinator.step,
        "skipped_steps": counters.skipped_steps,
        **counts.done(getattr(counters, counts.key), counters.train_s),
        "first_eval": _shown(first),
        "final_eval": _shown(last),
        "policy_lag": {"max": counters.lag_max, "mean": lag_mean},
        "ledger": ledger,
        "restarts": coordinator.restarts,
        "env_restarts": counters.env_restarts,
        "weights_hash": workers.weights_hash,
    }


def _shown(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    keys = ("mean", "std", "n", "unit", "unfinished")
    return None if evaluation is None else {key: evaluation[key] for key in keys if key in evaluation}
