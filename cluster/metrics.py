"""The run's one /metrics endpoint, served by the driver. Actors send small records with the calls they make anyway.
Names are rollcall_*, in base units; labels are few and bounded: never a ticket or an actor id."""

from __future__ import annotations

import errno
import math
from typing import Any, Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.errors import BadInput

DEFAULT_PORT = 9464
STEP_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

# (key of the step record, name, text). A key that a record lacks leaves its metric as it was.
_GAUGES = (
    ("policy_version", "policy_version", "Version of the newest published weights"),
    ("lag_max", "policy_lag_max", "Largest policy lag, in versions, in the newest batch"),
    ("lag_mean", "policy_lag_mean", "Mean policy lag, in versions, in the newest batch"),
    ("bound_fraction", "bound_fraction_ratio", "Speed as a fraction of the pipelined bound"),
    ("restarts", "restarts", "Processes started again by supervision"),
)
_CONTROL_GAUGES = (("return_mean", "return_mean", "Mean undiscounted return of the last 100 training episodes"),)
_LANGUAGE_GAUGES = (
    ("reward_mean", "reward_mean", "Mean reward of the completions in the newest batch"),
    ("exact_match", "exact_match_ratio", "Share of the newest batch's completions that are right"),
    ("length_mean", "completion_length_tokens", "Mean length of the completions in the newest batch"),
    ("truncated_fraction", "truncated_ratio", "Share of the newest batch's completions that were cut for length"),
    ("entropy", "entropy_nats", "Mean entropy of the policy, per token"),
    ("clip_fraction", "clip_fraction_ratio", "Share of the tokens where the policy ratio was clipped"),
    ("kl_reference", "kl_reference_nats", "Mean KL estimate from the policy to the reference, per token"),
    ("mismatch", "logprob_mismatch_nats", "Mean distance of the learner's from the engine's log-probabilities"),
)
_SECONDS = (
    ("update_s", "update", "Seconds of one learner update"),
    ("wait_batch_s", "wait_batch", "Seconds the learner waited for a batch"),
    ("publish_s", "publish", "Seconds to publish one version of the weights"),
)
_LANGUAGE_SECONDS = (("apply_s", "weights_apply", "Seconds the engines spent on loading weights, per learner step"),)
# Totals over the whole run.
_CONTROL_TOTALS = (
    ("env_steps", "env_steps", "Environment steps learned from"),
    ("episodes", "episodes", "Episodes that ended"),
    ("env_restarts", "env_restarts", "Environments started anew after they raised"),
)


class MetricsConfig(BaseModel):
    """Where Prometheus finds the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(default=True, description="serve /metrics from the driver")
    host: str = Field(default="127.0.0.1", description="the address served on; loopback unless you say otherwise")
    port: int | None = Field(
        default=None, ge=1, le=65535, description=f"an error if taken; by default {DEFAULT_PORT} or a free one"
    )


class RunMetrics:
    """A Recorder that keeps the run's metrics in a registry of its own, and serves them."""

    def __init__(self, *, policy: str, env: str, kind: Literal["control", "language"] = "control") -> None:
        """`env` is the env's id or the task's name; `kind` settles which metrics there are."""
        self.registry = CollectorRegistry()
        self._labels = {"policy": policy, "env": env}
        language = kind == "language"
        gauges = (*_GAUGES, *(_LANGUAGE_GAUGES if language else _CONTROL_GAUGES))
        self._gauges = {key: self._gauge(name, text) for key, name, text in gauges}
        spans = (*_SECONDS, *(_LANGUAGE_SECONDS if language else ()))
        self._seconds = {key: self._histogram(name, text) for key, name, text in spans}
        totals = () if language else _CONTROL_TOTALS
        self._totals = {key: self._counter(name, text).labels(**self._labels) for key, name, text in totals}
        self._trained: Counter | None = None
        if language:
            tokens = self._counter("tokens", "Tokens sampled and learned from, and tokens in updates", "stage")
            self._totals["tokens"] = tokens.labels(**self._labels, stage="generated")
            self._trained = tokens.labels(**self._labels, stage="trained")
            dropped = self._counter("prompts_dropped", "Prompts given up, by what their samples came to", "outcome")
            self._totals["degenerate_dropped"] = dropped.labels(**self._labels, outcome="degenerate")
        self._last_step = self._gauge("last_step_timestamp_seconds", "Unix time of the newest learner step")
        self._eval = (
            self._gauge("eval_exact_match_ratio", "Share of the held-out problems solved in the newest evaluation")
            if language
            else self._gauge("eval_return_mean", "Mean return of the newest evaluation")
        )
        self._steps = self._counter("learner_steps", "Learner steps", "outcome")
        self._events = self._counter("events", "What happened, by kind", "outcome")
        self._seen: dict[str, float] = {}
        self._server: WSGIServer | None = None

    def _gauge(self, name: str, text: str) -> Gauge:
        """Without a sample until it is first set: a zero would claim what nobody measured."""
        return Gauge(f"rollcall_{name}", text, list(self._labels), registry=self.registry)

    def _counter(self, name: str, text: str, *more: str) -> Counter:
        return Counter(f"rollcall_{name}", text, [*self._labels, *more], registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        labels, name = list(self._labels), f"rollcall_{name}_seconds"
        return Histogram(name, text, labels, registry=self.registry, buckets=STEP_BUCKETS_S).labels(**self._labels)

    def serve(self, config: MetricsConfig) -> int:
        """Starts the endpoint; returns its port.

        Raises:
          BadInput: when a configured port is taken.
        """
        if config.port is not None:
            candidates = [config.port]
        else:
            candidates = [DEFAULT_PORT, 0]
        for port in candidates:
            try:
                self._server, _ = start_http_server(port, addr=config.host, registry=self.registry)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise BadInput(f"metrics.host={config.host}: cannot be served on ({error.strerror})") from None
                continue
            return int(self._server.server_port)
        raise BadInput(
            f"metrics.port={config.port}: in use by another process; choose another, or leave it out for a free one"
        )

    def on_step(self, record: dict[str, Any]) -> None:
        for key, gauge in self._gauges.items():
            self._set(gauge, record.get(key))
        for key, histogram in self._seconds.items():
            if _is_number(record.get(key)):
                histogram.observe(record[key])
        for key, counter in self._totals.items():
            if _is_number(record.get(key)):
                self._advance(counter, key, record[key])
        if self._trained is not None and _is_number(record.get("trained_tokens")):
            self._trained.inc(record["trained_tokens"])
        self._last_step.labels(**self._labels).set_to_current_time()
        self._steps.labels(**self._labels, outcome="skipped" if record.get("skipped") else "done").inc()

    def on_eval(self, record: dict[str, Any]) -> None:
        self._set(self._eval, record.get("mean"))

    def on_event(self, kind: str, text: str) -> None:
        self._events.labels(**self._labels, outcome=kind).inc()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _set(self, gauge: Gauge, value: Any) -> None:
        if _is_number(value):
            gauge.labels(**self._labels).set(value)

    def _advance(self, counter: Counter, name: str, total: float) -> None:
        """Counters only rise: a restore that goes back to an older total adds nothing until it is passed."""
        seen = self._seen.get(name, 0.0)
        if total > seen:
            counter.inc(total - seen)
            self._seen[name] = total


def _is_number(value: Any) -> bool:
    """What is not finite is left out: it would spoil a sum for good."""
    return isinstance(value, (int, float)) and math.isfinite(value)
