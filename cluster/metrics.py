"""The run's one /metrics endpoint, served by the driver. Actors send small records with the calls they make anyway.
Names are rollcall_*, in base units; labels are few and bounded: never a ticket or an actor id."""

from __future__ import annotations

import errno
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from pydantic import BaseModel, ConfigDict, Field

from rollcall.cluster.errors import BadInput

DEFAULT_PORT = 9464
STEP_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


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

    def __init__(self, *, policy: str, env: str) -> None:
        self.registry = CollectorRegistry()
        labels = {"policy": policy, "env": env}

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"rollcall_{name}", text, list(labels), registry=self.registry).labels(**labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"rollcall_{name}", text, list(labels), registry=self.registry).labels(**labels)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(
                f"rollcall_{name}_seconds", text, list(labels), registry=self.registry, buckets=STEP_BUCKETS_S
            ).labels(**labels)

        self._labels = labels
        self._version = gauge("policy_version", "Version of the newest published weights")
        self._env_steps = counter("env_steps", "Environment steps learned from")
        self._episodes = counter("episodes", "Episodes that ended")
        self._env_restarts = counter("env_restarts", "Environments started anew after they raised")
        self._return = gauge("return_mean", "Mean undiscounted return of the last 100 training episodes")
        self._lag = gauge("policy_lag_max", "Largest policy lag, in versions, in the newest batch")
        self._bound = gauge("bound_fraction_ratio", "Speed as a fraction of the pipelined bound")
        self._restarts = gauge("restarts", "Processes started again by supervision")
        self._last_step = gauge("last_step_timestamp_seconds", "Unix time of the newest learner step")
        self._eval = gauge("eval_return_mean", "Mean return of the newest evaluation")
        self._update = seconds("update", "Seconds of one learner update")
        self._wait = seconds("wait_batch", "Seconds the learner waited for a batch")
        self._publish = seconds("publish", "Seconds to publish one version of the weights")
        self._steps = Counter("rollcall_learner_steps", "Learner steps", [*labels, "outcome"], registry=self.registry)
        self._events = Counter(
            "rollcall_events", "What happened, by kind", [*labels, "outcome"], registry=self.registry
        )
        self._seen: dict[str, float] = {}
        self._server: WSGIServer | None = None

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
        self._version.set(record["policy_version"])
        self._advance(self._env_steps, "env_steps", record["env_steps"])
        self._advance(self._episodes, "episodes", record["episodes"])
        self._advance(self._env_restarts, "env_restarts", record["env_restarts"])
        if record["return_mean"] is not None:
            self._return.set(record["return_mean"])
        self._lag.set(record["lag_max"])
        self._bound.set(record["bound_fraction"])
        self._restarts.set(record["restarts"])
        self._last_step.set_to_current_time()
        self._update.observe(record["update_s"])
        self._wait.observe(record["wait_batch_s"])
        self._publish.observe(record["publish_s"])
        self._steps.labels(**self._labels, outcome="skipped" if record["skipped"] else "done").inc()

    def on_eval(self, record: dict[str, Any]) -> None:
        self._eval.set(record["mean"])

    def on_event(self, kind: str, text: str) -> None:
        self._events.labels(**self._labels, outcome=kind).inc()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _advance(self, counter: Counter, name: str, total: float) -> None:
        """Counters only rise: a restore that goes back to an older total adds nothing until it is passed."""
        seen = self._seen.get(name, 0.0)
        if total > seen:
            counter.inc(total - seen)
            self._seen[name] = total
