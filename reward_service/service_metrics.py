"""What the service counts of itself. Names are rollcall_reward_*, in base units; labels are few and bounded: never a
request's or an item's id. Must never know what is done with the numbers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServiceMetrics:
    """In a registry of its own, so that several services fit into one process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"rollcall_reward_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"rollcall_reward_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"rollcall_reward_{name}", text, labels, registry=registry, buckets=buckets)

        self.requests = counter("requests", "Requests, by what became of them", "route", "outcome")
        self.latency = histogram("request_seconds", "Seconds from a request's head to its answer", _SECONDS, "route")
        self.in_flight = gauge("requests_in_flight", "Requests under way")
        self.items = counter("items", "Items, by what became of them", "model", "outcome")
        self.queue_items = gauge("queue_items", "Items that wait to be scored", "model")
        self.queue_tokens = gauge("queue_tokens", "Tokens that wait to be scored", "model")
        self.batch_items = histogram("batch_items", "Items of a batch", _SIZES, "model")
        self.tokens = counter("tokens", "Tokens computed; padding: those that only fill a batch up", "model", "kind")
        self.compute = counter("compute_seconds", "Seconds in which the model computed", "model")
        self.retries = counter("batch_retries", "Batches that failed as a whole, tried again item by item", "model")
        self.cache = counter("cache", "Look-ups of scores, and what went wrong with the cache", "outcome")
        self.swaps = counter("model_loads", "Models built to take a place, by what became of them", "model", "outcome")
        self.models = gauge("model_info", "1 for each model that is served", "model", "version", "kind")
