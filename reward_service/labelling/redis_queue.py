"""How the queue of comparisons lies in Redis, and how it is written anew from the books. preference_queue.lua moves it
from there."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, Self, TypeVar

import redis
from pydantic import BaseModel, ConfigDict, Field
from redis.client import Pipeline

from rollcall.reward_service.preferences.log import Books

_T = TypeVar("_T")


class QueueKeys(NamedTuple):
    """What the queue is kept under; in the order in which the script takes them."""

    head: str
    comparisons: str
    queue: str
    leases: str
    expiries: str
    seen: str
    tallies: str
    labels: str
    log: str
    times: str

    @classmethod
    def of(cls, namespace: str) -> Self:
        return cls(*(f"{namespace}:preferences:{name}" for name in cls._fields))


class LabellingConfig(BaseModel):
    """How comparisons are handed out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lease_ttl_s: float = Field(
        default=600.0, gt=0, le=86_400, description="a comparison not answered for so long goes to somebody else"
    )
    labels_per_comparison: int = Field(default=1, ge=1, le=100, description="raters asked about the same comparison")
    max_skips: int = Field(default=3, ge=1, le=100, description="raters who may skip it before it is asked no more")


class RedisCaller(Protocol):
    """A `cluster.store.Store`, or whatever else speaks to a Redis."""

    def call(self, operation: Callable[[redis.Redis], _T]) -> _T:
        """Runs the operation, which may be repeated. Raises StoreUnavailable."""
        ...


def rebuild_queue(
    pipeline: Pipeline, keys: QueueKeys, books: Books, leases: Mapping[str, str], seq: int, config: LabellingConfig
) -> None:
    """Writes all keys, within the pipeline's transaction. Of the leases, those stay that may still be answered."""
    standing = books.standing()
    seen: dict[str, str] = {}
    tallies: Counter[str] = Counter()
    raters: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, str] = {entry.withdrawn: "withdrawn" for entry in books.entries if entry.withdrawn}
    times: dict[str, int] = {}
    for label in standing:
        decided = label.places is not None
        seen[f"{label.comparison_id}\n{label.rater}"] = "labelled" if decided else "skipped"
        tallies[f"{label.comparison_id}:{'labels' if decided else 'skips'}"] += 1
        raters[label.comparison_id].append(label.rater)
        labels[label.token] = label.model_dump_json(exclude_none=True)
        if decided:
            times[f"{label.token}\n{label.rater}"] = round(label.created_at.timestamp() * 1000)
    for token, lease in leases.items():
        id_, _, _, rater = lease.split("|", 3)
        if id_ in books.comparisons and f"{id_}\n{rater}" not in seen:
            seen[f"{id_}\n{rater}"] = "leased"
            tallies[f"{id_}:leases"] += 1
        else:
            pipeline.hdel(keys.leases, token)
            pipeline.zrem(keys.expiries, token)
    waiting: dict[str, int] = {}
    for order, (id_, line) in enumerate(books.comparisons.items(), start=1):
        tallies[f"{id_}:size"], tallies[f"{id_}:order"] = len(json.loads(line)["candidates"]), order
        labelled, skipped = tallies[f"{id_}:labels"], tallies[f"{id_}:skips"]
        if labelled < config.labels_per_comparison and skipped < config.max_skips:
            waiting[id_] = order
            tallies.update(f"open\n{rater}" for rater in raters[id_])
    pipeline.delete(*(key for key in keys if key not in (keys.head, keys.leases, keys.expiries)))
    for key, fields in (
        (keys.comparisons, books.comparisons),
        (keys.seen, seen),
        (keys.tallies, dict(tallies)),
        (keys.tallies, {f"{id_}:raters": "\n".join(names) for id_, names in raters.items()}),
        (keys.labels, labels),
        (keys.head, {"seq": seq, "order": len(books.comparisons)}),
    ):
        if fields:
            pipeline.hset(key, mapping=fields)  # type: ignore[arg-type]
    for key, scores in ((keys.queue, waiting), (keys.times, times)):
        if scores:
            pipeline.zadd(key, scores)
    if books.entries:
        pipeline.rpush(keys.log, *(entry.line() for entry in books.entries))
