"""A labelling service for tests: the real server on a port of its own, on a thread, with a token and a store."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import redis
from pydantic import SecretStr

from rollcall.cluster.errors import StoreUnavailable
from rollcall.cluster.store.redis_server import PrivateRedis
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.labelling.routes import OPEN_PATHS, router
from rollcall.reward_service.labelling.store import PreferenceStore
from rollcall.reward_service.preferences.records import Comparison, SegmentCandidate, TextCandidate
from rollcall.reward_service.protocol import ArrayField, Segment
from rollcall.reward_service.service.server import Server
from rollcall.reward_service.service.service_config import ServiceConfig

TOKEN = "the-raters-token"
_numbers = itertools.count()
T = TypeVar("T")


@contextmanager
def private_redis(folder: Path) -> Iterator[PrivateRedis]:
    server = PrivateRedis(folder / "data", folder / "log", start_timeout_s=20)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass(frozen=True)
class PlainRedis:
    """A RedisCaller whose outage is StoreUnavailable at once."""

    client: redis.Redis

    def call(self, operation: Callable[[redis.Redis], T]) -> T:
        try:
            return operation(self.client)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise StoreUnavailable(f"Redis does not answer: {error}") from error


@dataclass(frozen=True)
class Service:
    url: str
    store: PreferenceStore


@contextmanager
def labelling_service(server: PrivateRedis, directory: Path, **config: object) -> Iterator[Service]:
    client = server.client(5.0)
    store = PreferenceStore(
        PlainRedis(client),
        namespace=f"labelling:{{{next(_numbers)}}}",
        directory=directory,
        config=LabellingConfig.model_validate(config),
    )
    http = Server(ServiceConfig(port=0), token=SecretStr(TOKEN), routers=[router(store)], open_paths=OPEN_PATHS)
    thread = threading.Thread(target=http.run, kwargs={"signals": False}, daemon=True)
    thread.start()
    try:
        yield Service(http.url, store)
    finally:
        http.end()
        thread.join(20)
        client.close()
    assert not thread.is_alive()


def text(number: int, *, responses: int = 2, **metadata: str) -> Comparison:
    return Comparison.of(
        [TextCandidate(prompt=f"prompt {number}", response=f"response {number}.{i}") for i in range(responses)],
        metadata=dict(metadata),
    )


def swinging_pole(seed: int, *, num_steps: int = 20) -> Segment:
    """States of a CartPole that nobody balances."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0.02, 0.2) * np.sin(np.arange(num_steps) / 5)
    seen = np.stack([angles * 5, angles, angles, angles], axis=1).astype(np.float32)
    return Segment(observations=ArrayField.of(seen), actions=ArrayField.of(rng.integers(0, 2, num_steps)))


def clips(seed: int, *, env_id: str | None = "CartPole-v1") -> Comparison:
    pair = [SegmentCandidate(segment=swinging_pole(seed + 1000 * i), env_id=env_id) for i in range(2)]
    return Comparison.of(pair)
