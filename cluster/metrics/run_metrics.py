"""The metrics of one run, in a registry of its own: fed by the driver's recorders and by what watches the run, read by
Prometheus. Labels are few and bounded: never a ticket or an actor id. What there is stands in metric_table.py."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from rollcall.cluster.books.ledger_table import LedgerCounts
from rollcall.cluster.loop.run import RunState
from rollcall.cluster.metrics.best_evaluation import BestEvaluation
from rollcall.cluster.metrics.metrics_config import DEFAULT_PORT, MetricsConfig
from rollcall.cluster.metrics.server import MetricsServer, serve
from rollcall.cluster.metrics.table import DRIVER, DRIVER_LABELS, ROLES, STATES, Sample

# Keys of the step record, and the metrics that they set. A key that a record lacks leaves its metric as it was.
_GAUGES = {
    "policy_version": "policy_version",
    "lag_max": "policy_lag_max",
    "lag_mean": "policy_lag_mean",
    "bound_fraction": "bound_fraction_ratio",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy_nats",
    "approx_kl": "approx_kl_nats",
    "clip_fraction": "clip_fraction_ratio",
    "value_loss": "value_loss",
    "ptx_loss": "ptx_loss",
    "q_mean": "action_value",
    "td_error": "td_error",
    "temperature": "temperature",
    "replay_transitions": "replay_transitions",
    "replay_bytes": "replay_bytes",
    "replay_age_versions": "replay_age_versions",
    "replay_age_env_steps": "replay_age_env_steps",
    "priority_evenness": "priority_evenness_ratio",
    "reward_mean": "reward_mean",
    "return_mean": "return_mean",
    "episode_length_mean": "episode_length_mean",
    "explained_variance": "explained_variance_ratio",
    "kl_old": "kl_old_nats",
    "kl_coef": "kl_penalty_coef",
    "intrinsic_reward": "intrinsic_reward_mean",
    "exact_match": "exact_match_ratio",
    "unparsed_fraction": "unparsed_ratio",
    "truncated_fraction": "truncated_ratio",
    "degenerate_fraction": "degenerate_ratio",
    "length_mean": "completion_length_tokens",
    "kl_reference": "kl_reference_nats",
    "repeated_ngrams": "repeated_ngram_ratio",
    "identical_fraction": "identical_ratio",
    "reward_disagreement": "reward_disagreement",
    "reward_task": "task_reward_mean",
    "task_reward_lost": "task_reward_lost_ratio",
    "reward_gain": "reward_gain_deviations",
    "task_gain": "task_reward_gain_deviations",
    "reward_agreement": "reward_agreement_ratio",
    "reward_fresh_accuracy": "reward_fresh_accuracy_ratio",
    "reward_fresh_low": "reward_fresh_accuracy_low_ratio",
    "mismatch": "logprob_mismatch_nats",
    "engine_running": "engine_running_requests",
    "engine_waiting": "engine_waiting_requests",
    "engine_kv_cache_usage": "engine_kv_cache_usage_ratio",
    "engine_canary": "engine_canary_nats",
    "engine_canary_bound": "engine_canary_bound_nats",
}
_HISTOGRAMS = {
    "step_s": "step_seconds",
    "wait_batch_s": "wait_batch_seconds",
    "update_s": "update_seconds",
    "act_s": "act_seconds",
    "publish_s": "publish_seconds",
    "score_s": "score_seconds",
    "apply_s": "weights_apply_seconds",
}
# Totals over the whole run, the drivers before this one included; (metric, further labels).
_TOTALS: dict[str, tuple[str, ...]] = {
    "env_steps": ("env_steps",),
    "episodes": ("episodes",),
    "env_restarts": ("env_restarts",),
    "tokens": ("tokens", "generated"),
    "degenerate_dropped": ("prompts_dropped", "degenerate"),
}
# Amounts of one step.
_AMOUNTS: dict[str, tuple[str, ...]] = {
    "trained_tokens": ("tokens", "trained"),
    "engine_steps": ("engine_steps",),
    "engine_cached_tokens": ("engine_prompt_tokens", "hit"),
    "engine_computed_tokens": ("engine_prompt_tokens", "miss"),
}


def metric_of(key: str) -> tuple[str, ...]:
    """Which metric of table.py a key of metrics.jsonl feeds, with the value of its label if it has one; nothing where
    it feeds none."""
    for plain in (_GAUGES, _HISTOGRAMS):
        if key in plain:
            return (plain[key],)
    return tuple((_TOTALS | _AMOUNTS).get(key, ()))


class RunMetrics:
    """A Recorder that keeps the run's metrics, and serves them. Counts the time that it takes itself."""

    def __init__(self, *, policy: str, env: str, run: str = "run", kind: str = "control") -> None:
        """`env` is the env's id or the task's name; `kind` settles which metrics there are."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._labels = dict(zip(DRIVER_LABELS, (run, policy, env), strict=True))
        self._families = {
            metric.name: metric.made(self.registry, DRIVER_LABELS)
            for metric in DRIVER
            if metric.runs in ("either", kind)
        }
        self._kind = kind
        self._children: dict[tuple[str, ...], Sample] = {}
        self._seen: dict[tuple[str, ...], float] = {}
        self._reward_versions: tuple[str, ...] = ()
        self._state: Callable[[], RunState] | None = None
        self._outside: Callable[[], int] | None = None
        self._evaluations = BestEvaluation()
        self._looking = threading.Lock()  # scrapes come on threads of their own
        self._server: MetricsServer | None = None
        for outcome in ("done", "skipped"):
            self._at("learner_steps", outcome)  # zeros that are counted: an alert sees the first skipped step
        for role in ROLES:
            self._at("starts_failed", role)
        self._spent = self._at("metrics_seconds")
        self.enter("starting")

    def serve(self, config: MetricsConfig) -> int:
        """Starts the endpoint; returns its port.

        Raises:
          BadInput: when a configured port is taken, or the host cannot be served on.
        """
        ports = [config.port] if config.port is not None else [DEFAULT_PORT, 0]
        self._server = serve(self.page, host=config.host, ports=ports)
        return self._server.port

    def page(self) -> bytes:
        """What Prometheus is told."""
        with self._looking:
            began = time.perf_counter()
            self._look()
            page = generate_latest(self.registry)
            self._spent.inc(time.perf_counter() - began)
            return page

    # What the launcher says.

    def describe(self, *, version: str, recipe: str, algorithm: str, runtime: str) -> None:
        self._at("run_info", version, recipe, algorithm, runtime, self._kind).set(1)

    def enter(self, state: str) -> None:
        """From now on the run is in this state, one of STATES."""
        assert state in STATES, state
        for name in STATES:
            self._at("run_state", name).set(name == state)
        if state == "training":
            self._at("last_step_timestamp_seconds").set_to_current_time()

    def watch(self, state: Callable[[], RunState]) -> None:
        """Asked at each scrape: what the queue holds is of most interest while no step happens."""
        self._state = state

    # What the recorders and the probe say.

    def on_step(self, record: Mapping[str, Any]) -> None:
        began = time.perf_counter()
        for key, value in record.items():
            if not _is_number(value):
                continue
            if (name := _GAUGES.get(key)) is not None:
                self._set(value, name)
            elif (name := _HISTOGRAMS.get(key)) is not None:
                if name in self._families:
                    self._at(name).observe(value)
            elif key in _TOTALS:
                self._advance(value, *_TOTALS[key])
            elif key in _AMOUNTS and _AMOUNTS[key][0] in self._families:
                self._at(*_AMOUNTS[key]).inc(value)
        fresh, mismatch = record.get("fresh_fraction"), record.get("fresh_mismatch")
        if _is_number(fresh) and _is_number(mismatch) and fresh > 0:  # both per token of the batch
            self._set(mismatch / fresh, "fresh_mismatch_nats")
        first = record.get("first_steps")
        for key, value in first.items() if isinstance(first, Mapping) and "first_steps_mean" in self._families else ():
            if key in _GAUGES:
                self._at("first_steps_mean", _GAUGES[key]).set(value)
        versions = tuple(record.get("reward_versions") or ())
        if versions:
            self._reward_model(versions)
        self._at("last_step_timestamp_seconds").set_to_current_time()
        self._at("learner_steps", "skipped" if record.get("skipped") else "done").inc()
        self._spent.inc(time.perf_counter() - began)

    def on_eval(self, record: Mapping[str, Any]) -> None:
        if not _is_number(record.get("mean")):
            return
        if self._kind == "language":
            name = "eval_reward_mean" if record.get("unit") == "reward" else "eval_exact_match_ratio"
            self._set(self._evaluations.lost(record), "eval_lost_ratio")
        else:
            name = "eval_return_mean"
        self._set(record["mean"], name)

    def on_event(self, kind: str, text: str) -> None:
        self._at("events", kind).inc()

    def watch_outside(self, num_actors: Callable[[], int]) -> None:
        """Asked at each scrape: how many actors outside Ray are here."""
        self._outside = num_actors

    def on_outside(self, request: str, status: int, code: str) -> None:
        """An actor outside Ray asked for something. On threads of the gateway."""
        with self._looking:
            self._at("outside_requests", request, str(status)).inc()
            if code != "ok":
                self._at("outside_refused", code).inc()

    def on_failed_start(self, role: str) -> None:
        self._at("starts_failed", role).inc()

    def on_redis(self, ping_s: float | None) -> None:
        """None: it did not answer."""
        self._at("redis_up").set(ping_s is not None)
        if ping_s is not None:
            self._at("redis_ping_seconds").set(ping_s)

    def on_ledger(self, counts: LedgerCounts) -> None:
        self._advance(counts.issued, "tickets_issued")
        self._advance(counts.duplicates_refused, "duplicates_refused")
        ended = {"committed": counts.committed, "rolled_back": counts.rolled_back, **counts.dropped_by_reason}
        for outcome, number in ended.items():
            self._advance(number, "tickets", outcome)

    def on_unsealed(self, attempts: int) -> None:
        self._at("books_unsealed_tickets").set(attempts)

    def on_disk(self, *, free_bytes: int, size_bytes: int) -> None:
        self._at("disk_free_bytes").set(free_bytes)
        self._at("disk_size_bytes").set(size_bytes)

    def on_checkpoint_size(self, size_bytes: int) -> None:
        self._at("last_checkpoint_bytes").set(size_bytes)

    def close(self) -> None:
        self._state = None
        if self._server is not None:
            self._server.close()
            self._server = None

    # Inside.

    def _look(self) -> None:
        """Takes the run's state as it is now."""
        if self._outside is not None:
            self._set(self._outside(), "outside_actors")
        if self._state is None:
            return
        state = self._state()
        batch = state.tickets_per_step
        for name, value in (
            ("progress_ratio", state.progress),
            ("tickets_per_step", batch),
            ("tickets_capacity", (state.max_policy_lag + 1) * batch),
            ("tickets_acting", state.acting),
            ("tickets_scoring", state.scoring),
            ("tickets_queued", state.queued),
            ("tickets_training", state.training),
            ("policy_lag_bound", state.max_policy_lag),
        ):
            self._set(value, name)
        if state.checkpoint_step >= 0:
            self._set(state.checkpoint_step, "last_checkpoint_step")
            self._set(state.checkpoint_unix_s, "last_checkpoint_timestamp_seconds")
        for role in ROLES:
            number = state.restarts.get(role, 0)
            if number > self._seen.get(("restarts", role), 0):
                self._at("last_restart_timestamp_seconds", role).set_to_current_time()
            self._advance(number, "restarts", role)

    def _reward_model(self, versions: tuple[str, ...]) -> None:
        """The first one is no change; a batch may hold two while they change."""
        if versions != self._reward_versions:
            new = set(versions) - set(self._reward_versions)
            self._at("reward_model_changes").inc(len(new) if self._reward_versions else 0)
            if new:
                self._at("reward_model_changed_timestamp_seconds").set_to_current_time()
            self._reward_versions = versions

    def _at(self, name: str, *labels: str) -> Sample:
        """Made when it is first wanted."""
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._families[name].labels(*self._labels.values(), *labels)
        return child

    def _set(self, value: float, name: str) -> None:
        if name in self._families:
            self._at(name).set(value)

    def _advance(self, total: float, *key: str) -> None:
        """Counters only rise: a restore that goes back to an older total adds nothing until it is passed."""
        if key[0] not in self._families:
            return
        child, seen = self._at(*key), self._seen.get(key, 0.0)
        if total > seen:
            child.inc(total - seen)
            self._seen[key] = total


def directory_bytes(directory: Path) -> int:
    """Of all files below it; those that vanish meanwhile count as nothing."""
    size = 0
    for path in directory.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return size


def _is_number(value: object) -> TypeGuard[float]:
    """What is not finite is left out: it would spoil a sum for good."""
    return isinstance(value, (int, float)) and math.isfinite(value)
