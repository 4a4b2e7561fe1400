"""What the service counts of itself. Names are rollcall_reward_*, in base units; labels are few and bounded: never a
request's or an item's id."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from rollcall.cluster.metrics.table import SECONDS, Metric, MetricKind

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_FIRST = "the first scored item"


def _metric(
    name: str, kind: MetricKind, unit: str, text: str, *labels: str, when: str = _FIRST, sizes: bool = False
) -> Metric:
    buckets = _SIZES if sizes else SECONDS
    return Metric(f"reward_{name}", kind, unit, text, labels, when=when, buckets=buckets)


SERVICE = (
    _metric("requests", "counter", "requests", "By what became of them", "route", "outcome", when="the first request"),
    _metric(
        "request_seconds", "histogram", "seconds", "From a request's head to its answer", "route", when="a request"
    ),
    _metric("requests_in_flight", "gauge", "requests", "Under way", when=""),
    _metric("items", "counter", "items", "By what became of them", "model", "outcome"),
    _metric("queue_items", "gauge", "items", "That wait to be scored", "model"),
    _metric("queue_tokens", "gauge", "tokens", "That wait to be scored", "model"),
    _metric("batch_items", "histogram", "items", "Of a batch", "model", sizes=True),
    _metric("tokens", "counter", "tokens", "Computed; padding: those that only fill a batch up", "model", "kind"),
    _metric("compute_seconds", "counter", "seconds", "In which the model computed", "model"),
    _metric("batch_retries", "counter", "batches", "Failed as a whole, tried again by item", "model", when="a failure"),
    _metric(
        "cache", "counter", "look-ups", "Of scores, and what went wrong with the cache", "outcome", when="a look-up"
    ),
    _metric(
        "model_loads", "counter", "models", "Built to take a place, by outcome", "model", "outcome", when="a hot swap"
    ),
    _metric("model_info", "gauge", "1", "1 for each model served", "model", "version", "kind", when="a model is built"),
    _metric(
        "model_loaded_timestamp_seconds", "gauge", "Unix time", "Of the served model", "model", when="a model is built"
    ),
)


class ServiceMetrics:
    """In a registry of its own, so that several services fit into one process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        made: dict[str, Any] = {item.name.removeprefix("reward_"): item.made(registry) for item in SERVICE}
        self.requests = made["requests"]
        self.latency = made["request_seconds"]
        self.in_flight = made["requests_in_flight"]
        self.items = made["items"]
        self.queue_items = made["queue_items"]
        self.queue_tokens = made["queue_tokens"]
        self.batch_items = made["batch_items"]
        self.tokens = made["tokens"]
        self.compute = made["compute_seconds"]
        self.retries = made["batch_retries"]
        self.cache = made["cache"]
        self.swaps = made["model_loads"]
        self.models = made["model_info"]
        self.loaded_at = made["model_loaded_timestamp_seconds"]
