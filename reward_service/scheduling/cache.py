"""Scores that were computed before, by key: in this process, or in Redis for several services. A cache that is away or
holds rubbish is a cache without the score. Only scores are cached, no failures."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import redis.asyncio
from pydantic import Field
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.strict import Strict
from rollcall.cluster.store.redis_address import safe_url
from rollcall.cluster.store.redis_config import URL_VARIABLE
from rollcall.reward_service.scheduling.metrics import ServiceMetrics
from rollcall.reward_service.scorer import Score, finite

FIRST_REST_S = 1.0  # how long a Redis that failed is left alone; doubled each time it fails again
LONGEST_REST_S = 30.0
_PREFIX = "rollcall:reward:"

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class CacheConfig(Strict):
    """Where scores are kept."""

    enabled: bool = Field(default=True, description="keep scores, of scorers that always say the same")
    ttl_s: int = Field(default=86_400, ge=1, description="how long a score is kept")
    max_bytes: int = Field(default=33_554_432, ge=0, description="of scores kept in this process, about")
    timeout_s: float = Field(default=0.1, gt=0, description="how long Redis may take before it is left alone")
    lock_s: float = Field(
        default=5.0, gt=0, description="how long another service may take over an item before we compute it too"
    )


class ScoreCache:
    """Keeps nothing, for a service that is told so, and says what those that keep something do. None ever raises: what
    fails is a score that is not there."""

    async def get(self, keys: Sequence[str]) -> list[Score | None]:
        return [None] * len(keys)

    async def put(self, scores: Mapping[str, Score]) -> None:
        """Also gives the claims on them back."""

    async def claim(self, keys: Sequence[str]) -> list[bool]:
        """Of each, whether we are to compute it; False: another service does just now."""
        return [True] * len(keys)

    async def release(self, keys: Sequence[str]) -> None:
        """Claimed, but not scored."""

    async def close(self) -> None:
        pass


class LocalCache(ScoreCache):
    """In this process. The least recently used scores are forgotten first."""

    def __init__(self, config: CacheConfig, metrics: ServiceMetrics) -> None:
        self._config, self._metrics = config, metrics
        self._entries: OrderedDict[str, tuple[float, Score]] = OrderedDict()  # when it ends
        self._bytes = 0

    async def get(self, keys: Sequence[str]) -> list[Score | None]:
        found = [self._get(key) for key in keys]
        _count(self._metrics, found)
        return found

    async def put(self, scores: Mapping[str, Score]) -> None:
        ends = time.monotonic() + self._config.ttl_s
        for key, score in scores.items():
            self._forget(key)
            self._entries[key] = (ends, score)
            self._bytes += _size(score)
        while self._bytes > self._config.max_bytes:
            self._forget(next(iter(self._entries)))

    def _get(self, key: str) -> Score | None:
        ends, score = self._entries.get(key, (0.0, None))
        if score is None:
            return None
        if ends < time.monotonic():
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return score

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= _size(entry[1])


class RedisCache(ScoreCache):
    """Scores in Redis, shared by every service that uses the same one. Computed by one of them at a time.

    A Redis that fails is left alone for a while, and costs nothing meanwhile.
    """

    def __init__(self, url: str, config: CacheConfig, metrics: ServiceMetrics) -> None:
        """Raises:
        BadInput: when the url is none of Redis's.
        """
        self._config, self._metrics, self._where = config, metrics, safe_url(url)
        limits: dict[str, Any] = {
            "socket_timeout": config.timeout_s,
            "socket_connect_timeout": config.timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "max_connections": 64,
            "timeout": config.timeout_s,
        }
        try:
            pool = redis.asyncio.BlockingConnectionPool.from_url(url, **limits)
        except ValueError as error:
            raise BadInput(f"not a Redis url: {self._where} (from redis.url or ${URL_VARIABLE}): {error}") from None
        self._client = redis.asyncio.Redis.from_pool(pool)
        self._rest_until, self._rest_s = 0.0, FIRST_REST_S
        self._probing = False

    async def check(self) -> None:
        """A Redis that is away may come back; one that refuses us will not change its mind.

        Raises:
          BadInput: it does not take our password.
        """
        try:
            await asyncio.wait_for(self._client.execute_command("PING"), 1.0)  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, AuthenticationError) or isinstance(
                error.__cause__, AuthenticationError
            ):  # of a socket
                raise BadInput(
                    f"the Redis at {self._where} (redis.url or ${URL_VARIABLE}) refuses us: {error}"
                ) from None
            _log.warning(
                "the cache's Redis at %s is away (%s): scores are computed again until it is back",
                *(self._where, error),
            )

    async def get(self, keys: Sequence[str]) -> list[Score | None]:
        names = [f"{_PREFIX}score:{key}" for key in keys]

        async def read() -> list[bytes | None]:
            answer: list[Any] = await self._client.mget(names)
            return answer

        nothing: list[bytes | None] = [None] * len(names)
        texts = await self._ask(read, nothing)
        found = [None if text is None else _decoded(text) for text in texts]
        invalid = len(texts) - texts.count(None) - (len(found) - found.count(None))
        if invalid:
            self._metrics.cache.labels("invalid").inc(invalid)
        _count(self._metrics, found)
        return found

    async def put(self, scores: Mapping[str, Score]) -> None:
        async def write() -> None:
            async with self._client.pipeline(transaction=False) as pipe:
                for key, score in scores.items():
                    pipe.set(f"{_PREFIX}score:{key}", _encoded(score), ex=self._config.ttl_s)
                pipe.delete(*(f"{_PREFIX}lock:{key}" for key in scores))
                await pipe.execute()

        if scores:
            await self._ask(write, None)

    async def claim(self, keys: Sequence[str]) -> list[bool]:
        async def lock() -> list[bool]:
            async with self._client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.set(f"{_PREFIX}lock:{key}", b"1", nx=True, px=max(1, round(1e3 * self._config.lock_s)))
                return [bool(answer) for answer in await pipe.execute()]

        return await self._ask(lock, [True] * len(keys))

    async def release(self, keys: Sequence[str]) -> None:
        """A lock that ran out meanwhile may be another's by now. Then two compute one item: both say the same."""
        if keys:
            await self._ask(lambda: self._client.delete(*(f"{_PREFIX}lock:{key}" for key in keys)), 0)

    async def close(self) -> None:
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def _ask(self, operation: Callable[[], Awaitable[_T]], without: _T) -> _T:
        """What Redis says, or `without` where it is away. After its rest, one caller tries whether it is back."""
        resting = self._rest_s > FIRST_REST_S  # it failed the last time
        if time.monotonic() < self._rest_until or (resting and self._probing):
            return without
        self._probing = True
        try:
            answer = await asyncio.wait_for(operation(), 2 * self._config.timeout_s)
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.cache.labels("error").inc()
            if time.monotonic() >= self._rest_until:
                _log.warning(
                    "the cache's Redis at %s fails (%s): left alone for %g s",
                    *(self._where, error or type(error).__name__, self._rest_s),
                )
                self._rest_until = time.monotonic() + self._rest_s
                self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
            return without
        finally:
            self._probing = False
        if resting:
            _log.warning("the cache's Redis at %s answers again", self._where)
        self._rest_s = FIRST_REST_S
        return answer


async def open_cache(config: CacheConfig, redis_url: str | None, metrics: ServiceMetrics) -> ScoreCache:
    """In Redis where there is a url.

    Raises:
    BadInput: the Redis that is named cannot be used, whatever time we give it.
    """
    if not config.enabled:
        return ScoreCache()
    if redis_url is None:
        return LocalCache(config, metrics)
    cache = RedisCache(redis_url, config, metrics)
    await cache.check()
    return cache


def _count(metrics: ServiceMetrics, found: Sequence[Score | None]) -> None:
    misses = found.count(None)
    metrics.cache.labels("hit").inc(len(found) - misses)
    metrics.cache.labels("miss").inc(misses)


def _size(score: Score) -> int:
    """Bytes, about, with the key and the dictionary's share."""
    return 400 + 130 * len(score.components) + 40 * len(score.step_values or ())


def _encoded(score: Score) -> bytes:
    steps = None if score.step_values is None else list(score.step_values)
    return json.dumps([score.value, dict(score.components), steps]).encode()


def _decoded(text: bytes) -> Score | None:
    """None for anything but a score: Redis may be shared, and what it holds is not trusted."""
    try:
        value, components, steps = json.loads(text)
        score = Score(
            float(value),
            {str(name): float(part) for name, part in components.items()},
            None if steps is None else tuple(float(step) for step in steps),
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return score if finite(score) is score else None
